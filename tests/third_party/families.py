"""Twenty and more families of timm and transformers, by name in a config, with what each needs.

All are small and have random weights: nothing is downloaded.
"""

from dataclasses import dataclass
from typing import Any

import torch

CLASSES, TOKENS, LENGTH = 4, 50, 16
"""Of every data set here: classes, different tokens, and tokens of one sample."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a model is written in a config.

    Attributes:
        model: `model.name` and `model.args`.
        kind: of samples, a name in SAMPLES; timm's models take pairs of an image and a class.
        size: pixels of a side of an image.
        needs: keys of the config that it needs besides, in words of the command line.
        refused: what is said where the model cannot be trained exactly, a part of the line; None where it can.
    """

    model: dict[str, Any]
    kind: str
    size: int = 32
    needs: tuple[str, ...] = ()
    refused: str | None = None

    def config(self) -> dict[str, Any]:
        """For one step with an evaluation."""
        args = {"kind": self.kind, "size": self.size}
        data = "Contrasted" if self.kind == "image and text" else "Samples"
        return {
            "name": "family",
            "data": {"name": f"tests.third_party.families:{data}", "args": args},
            "model": self.model,
            "task": {"name": "classification" if self.kind == "pair" else "huggingface"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "batch": {"global_size": 8, "microbatches": 2},
            "train": {"duration": "1 steps"},
            "eval": {"batch_size": 4},
            "loader": {"workers": 0},
            "tracking": {"samples": True, "wandb": {"mode": "disabled"}},
        }


def _timm(model_name: str, *, size: int = 32, needs: tuple[str, ...] = (), refused: str | None = None, **args: Any):
    model = {"name": "timm:create_model", "args": {"model_name": model_name, "num_classes": CLASSES, **args}}
    return Family(model=model, kind="pair", size=size, needs=needs, refused=refused)


def _transformers(
    auto: str, config: str, kind: str, *, size: int = 32, needs: tuple[str, ...] = (), refused: str | None = None,
    **args: Any,
):  # fmt: skip
    made = {"name": f"transformers:{config}", "args": args}
    model = {"name": f"transformers:{auto}.from_config", "args": {"config": made}}
    return Family(model=model, kind=kind, size=size, needs=needs, refused=refused)


ALLOW = ("distributed.unused_parameters=allow",)
_TEXT = {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GATED = {**_TEXT, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 32}
_BERT = {**_TEXT, "intermediate_size": 64, "max_position_embeddings": 32, "num_labels": CLASSES}
_IMAGE = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE |= {"intermediate_size": 64, "num_labels": CLASSES}
_T5 = {"vocab_size": TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_BART = {"vocab_size": TOKENS, "d_model": 32, "max_position_embeddings": 32, "encoder_layers": 2, "decoder_layers": 2}
_BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_SPEECH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SPEECH |= {"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_feat_extract_layers": 2}
_SPEECH |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16}
_WHISPER = {"vocab_size": TOKENS, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
_WHISPER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_WHISPER |= {"max_source_positions": 16, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1}
_WHISPER |= {"eos_token_id": 2, "decoder_start_token_id": 1}

FAMILIES: dict[str, Family] = {
    "timm resnet": _timm("resnet10t", size=64),
    "timm vit": _timm("test_vit", img_size=32),
    "timm efficientnet": _timm("test_efficientnet"),
    "timm convnext": _timm("test_convnext"),
    "timm nfnet": _timm("test_nfnet"),
    "timm byobnet": _timm("test_byobnet"),
    "timm mobilenet": _timm("mobilenetv3_small_050"),
    "timm maxvit": _timm("test_maxvit", size=64, img_size=64),
    "timm coatnet": _timm("test_coatnet", size=64, img_size=64),
    "timm mambaout": _timm("test_mambaout"),
    "timm swin": _timm("swin_tiny_patch4_window7_224", img_size=32, embed_dim=24, depths=[1, 1], num_heads=[2, 4]),
    "timm deit, distilled": _timm("deit_tiny_distilled_patch16_224", img_size=32),
    "timm beit": _timm("beit_base_patch16_224", img_size=32, embed_dim=48, depth=2, num_heads=4),
    "timm cait": _timm("cait_xxs24_224", img_size=32, depth=2),
    "timm mobilevit": _timm("mobilevit_xxs", size=64),
    "timm ghostnet": _timm("ghostnet_050"),
    "timm drop path": _timm("test_vit", img_size=32, drop_path_rate=0.5),
    "gpt2": _transformers(
        "AutoModelForCausalLM", "GPT2Config", "text", vocab_size=TOKENS, n_positions=32, n_embd=32, n_layer=2, n_head=4
    ),
    "llama": _transformers("AutoModelForCausalLM", "LlamaConfig", "text", **_GATED),
    "qwen3": _transformers("AutoModelForCausalLM", "Qwen3Config", "text", **_GATED, head_dim=8),
    "gemma2": _transformers("AutoModelForCausalLM", "Gemma2Config", "text", **_GATED, head_dim=8),
    "mixtral": _transformers(
        "AutoModelForCausalLM", "MixtralConfig", "text", **_GATED, num_local_experts=4, num_experts_per_tok=1
    ),
    "mamba": _transformers(
        "AutoModelForCausalLM", "MambaConfig", "text", vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2
    ),
    "opt": _transformers(
        "AutoModelForCausalLM", "OPTConfig", "text", **_TEXT, ffn_dim=64, max_position_embeddings=32,
        word_embed_proj_dim=32, layerdrop=0.5, needs=ALLOW,
    ),  # fmt: skip
    "gpt_neox": _transformers("AutoModelForCausalLM", "GPTNeoXConfig", "text", **_TEXT, intermediate_size=64),
    "bert": _transformers("AutoModelForSequenceClassification", "BertConfig", "text of a class", **_BERT),
    "bert, masked": _transformers("AutoModelForMaskedLM", "BertConfig", "text", **_BERT),
    "roberta": _transformers("AutoModelForTokenClassification", "RobertaConfig", "text of classes", **_BERT),
    "albert": _transformers("AutoModelForSequenceClassification", "AlbertConfig", "text of a class", **_BERT),
    "electra": _transformers("AutoModelForSequenceClassification", "ElectraConfig", "text of a class", **_BERT),
    "deberta": _transformers("AutoModelForSequenceClassification", "DebertaV2Config", "text of a class", **_BERT),
    "distilbert": _transformers(
        "AutoModelForQuestionAnswering", "DistilBertConfig", "answers", vocab_size=TOKENS, dim=32, n_layers=2,
        n_heads=4, hidden_dim=64, max_position_embeddings=32,
    ),  # fmt: skip
    "t5": _transformers("AutoModelForSeq2SeqLM", "T5Config", "text", **_T5, decoder_start_token_id=0),
    "bart": _transformers("AutoModelForSeq2SeqLM", "BartConfig", "text", **_BART),
    "vit": _transformers("AutoModelForImageClassification", "ViTConfig", "image", **_IMAGE),
    "vit, masked": _transformers(
        "AutoModelForPreTraining", "ViTMAEConfig", "image alone", **_IMAGE, decoder_hidden_size=32,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=4, decoder_intermediate_size=64,
    ),  # fmt: skip
    "resnet": _transformers(
        "AutoModelForImageClassification", "ResNetConfig", "image", embedding_size=16, hidden_sizes=[16, 32],
        depths=[1, 1], num_labels=CLASSES, layer_type="basic",
    ),  # fmt: skip
    "segformer": _transformers(
        "AutoModelForSemanticSegmentation", "SegformerConfig", "image and mask", hidden_sizes=[16, 16, 16, 16],
        depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=CLASSES, drop_path_rate=0.5,
    ),  # fmt: skip
    "wav2vec2": _transformers(
        "AutoModelForAudioClassification", "Wav2Vec2Config", "sound", **_SPEECH, num_labels=CLASSES, needs=ALLOW
    ),
    "whisper": _transformers("AutoModelForSpeechSeq2Seq", "WhisperConfig", "spectrogram and text", **_WHISPER),
    "clip": _transformers(
        "AutoModelForZeroShotImageClassification", "CLIPConfig", "image and text", projection_dim=16,
        text_config={**_TEXT, "intermediate_size": 64, "max_position_embeddings": 32, "eos_token_id": 1},
        vision_config=_IMAGE,
    ),  # fmt: skip
}  # fmt: skip


class Samples:
    """16 samples to train on and 6 to evaluate, of random numbers; the same whenever one is asked for.

    Args:
        kind: what a sample is made of: SAMPLES.
        size: pixels of a side of an image.
    """

    classes = tuple("abcd")

    def __init__(self, split: str, kind: str, size: int) -> None:
        self._first, self._count = (0, 16) if split == "train" else (16, 6)
        self._make, self._size = SAMPLES[kind], size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        drawn = torch.Generator().manual_seed(self._first + index)
        return self._make(_Drawn(drawn, self._size, (self._first + index) % CLASSES))


class Contrasted(Samples):
    """What CLIP compares within a microbatch. Its model asks for a flag besides, which is no part of a sample."""

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**torch.utils.data.default_collate(samples), "return_loss": True}


@dataclass(frozen=True)
class _Drawn:
    generator: torch.Generator
    size: int
    label: int

    def image(self) -> torch.Tensor:
        return torch.randn(3, self.size, self.size, generator=self.generator)

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def whole(self, most: int, *shape: int) -> torch.Tensor:
        return torch.randint(3, most, shape, generator=self.generator)


def _text(drawn: _Drawn) -> dict[str, Any]:
    tokens = drawn.whole(TOKENS, LENGTH)
    return {"input_ids": tokens, "labels": tokens.clone()}


def _answers(drawn: _Drawn) -> dict[str, Any]:
    return {"input_ids": drawn.whole(TOKENS, LENGTH), "start_positions": drawn.label, "end_positions": drawn.label + 3}


def _mask(drawn: _Drawn) -> torch.Tensor:
    return torch.randint(0, CLASSES, (drawn.size, drawn.size), generator=drawn.generator)


SAMPLES = {
    "pair": lambda drawn: (drawn.image(), drawn.label),
    "text": _text,
    "text of a class": lambda drawn: {"input_ids": drawn.whole(TOKENS, LENGTH), "labels": drawn.label},
    "text of classes": lambda drawn: {
        "input_ids": drawn.whole(TOKENS, LENGTH),
        "labels": torch.arange(LENGTH) % CLASSES,
    },
    "answers": _answers,
    "image": lambda drawn: {"pixel_values": drawn.image(), "labels": drawn.label},
    "image alone": lambda drawn: {"pixel_values": drawn.image()},
    "image and mask": lambda drawn: {"pixel_values": drawn.image(), "labels": _mask(drawn)},
    "sound": lambda drawn: {"input_values": drawn.numbers(4000), "labels": drawn.label},
    "spectrogram and text": lambda drawn: {"input_features": drawn.numbers(8, 32), "labels": _text(drawn)["labels"]},
    "image and text": lambda drawn: {
        "pixel_values": drawn.image(),
        "input_ids": drawn.whole(TOKENS, LENGTH),
    },
}
