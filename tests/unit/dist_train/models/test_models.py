"""Models: sizes, shapes, the same weights for the same seed, start weights, the user's own."""

import math
import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from dist_train import models
from dist_train.config.schema import Cnn, CustomModel, Gpt, Mlp, ResnetCifar, TorchvisionModel
from dist_train.errors import UserError
from dist_train.models.gpt import GPT


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(config, shape=(3, 32, 32), classes=10, seed=0) -> nn.Module:
    return models.build(config, shape=shape, classes=classes, seed=seed)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_cifar_has_the_papers_sizes(depth, millions):
    """He et al., 2015, table 6."""
    digits = 1 if depth == 110 else 2
    assert round(parameters(build(ResnetCifar(depth=depth))) / 1e6, digits) == millions


def test_resnet_cifar_shortcuts_have_no_parameters():
    layers = [m for m in build(ResnetCifar(depth=20)).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 20


def test_resnet_cifar_shortcut_takes_every_second_pixel_and_fills_channels_with_zeros():
    block = build(ResnetCifar(depth=8)).stage2[0]
    x = torch.rand(2, 16, 8, 8)
    shortcut = block._shortcut(x)
    assert torch.equal(shortcut[:, :16], x[:, :, ::2, ::2])
    assert shortcut.shape == (2, 32, 4, 4) and not shortcut[:, 16:].any()


@pytest.mark.parametrize("config", [Mlp(hidden=[16, 8], dropout=0.1), Cnn(width=4, dropout=0.1), ResnetCifar(depth=8)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 1, 1)])
def test_built_in_models_take_images_of_any_size(config, shape):
    model = build(config, shape, classes=7)
    out = model(torch.rand(3, *shape))
    assert out.shape == (3, 7)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_cnn_is_small():
    assert parameters(build(Cnn())) == pytest.approx(0.1e6, rel=0.1)


def test_mlp_layers():
    model = build(Mlp(hidden=[128, 64]), (1, 8, 8))
    assert [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)] == [
        (64, 128),
        (128, 64),
        (64, 10),
    ]
    assert build(Mlp(hidden=[]), (2,), 3)(torch.rand(4, 2)).shape == (4, 3)


def test_weights_depend_on_the_seed_alone():
    first = build(Cnn(width=4)).state_dict()
    torch.manual_seed(99)
    random.seed(99)
    before = torch.get_rng_state()
    again, other = build(Cnn(width=4)).state_dict(), build(Cnn(width=4), seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "building a model moves the global generator"
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not torch.equal(other["head.weight"], first["head.weight"])
    assert all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.int64) for t in first.values())


def test_start_weights(tmp_path):
    trained = build(Cnn(width=4), seed=5)
    trained.state_dict()["block1.1.running_mean"].fill_(3.0)
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, file)
    model = build(Cnn(width=4, start_weights=str(file)))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_start_weights_in_low_precision_become_fp32(tmp_path):
    file = tmp_path / "weights.safetensors"
    state = {
        n: t.bfloat16().contiguous() if t.is_floating_point() else t
        for n, t in build(Cnn(width=4), seed=5).state_dict().items()
    }
    save_file(state, file)
    model = build(Cnn(width=4, start_weights=str(file)))
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, state["head.weight"].float())


def test_start_weights_that_do_not_fit_are_named(tmp_path):
    state = {name: tensor.contiguous() for name, tensor in build(Cnn(width=4)).state_dict().items()}
    state["block2.0.weight"] = torch.zeros(5, 16)
    state["extra"] = state.pop("block1.0.weight")
    file = tmp_path / "weights.safetensors"
    save_file(state, file)
    with pytest.raises(UserError) as caught:
        build(Cnn(width=4, start_weights=str(file)))
    for part in (
        "missing: block1.0.weight",
        "not in the model: extra",
        "block2.0.weight [5, 16], the model's is [8, 4, 3, 3]",
    ):
        assert part in str(caught.value)


def test_switches():
    model = build(Cnn(width=4, channels_last=True, sync_batchnorm=True))
    assert model.block1[0].weight.is_contiguous(memory_format=torch.channels_last)
    kinds = {type(m) for m in model.modules()}
    assert nn.SyncBatchNorm in kinds and nn.BatchNorm2d not in kinds


def test_the_gradient_behind_the_average_keeps_the_format_and_changes_no_bit() -> None:
    model = build(Cnn(width=4, channels_last=True))
    images = torch.rand(3, 3, 32, 32).to(memory_format=torch.channels_last)
    arrived: list[torch.Tensor] = []
    model.block3.register_full_backward_pre_hook(lambda _, gradients: arrived.extend(gradients))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(images).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    kept = gradients()
    model.average._forward_pre_hooks.clear()
    plain = gradients()
    assert [one.is_contiguous(memory_format=torch.channels_last) for one in arrived] == [True, False]
    assert all(torch.equal(*pair) for pair in zip(kept, plain, strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "args"),
    [
        ("resnet18", (3, 32, 32), {}),
        ("mobilenet_v3_small", (3, 64, 64), {"width_mult": 0.5}),
        ("googlenet", (3, 64, 64), {}),
        ("vit_b_32", (3, 64, 64), {}),
    ],
)
def test_torchvision_models_give_one_tensor_of_scores(name, shape, args):
    model = build(TorchvisionModel(name=name, args=args), shape, classes=7)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvisions_segmentation_models_give_scores_of_each_pixel(name):
    found = build(TorchvisionModel(name=name), (3, 48, 32), classes=4)(torch.rand(2, 3, 48, 32))
    assert {key: value.shape for key, value in found.items()} == dict.fromkeys(
        ["out"] if name.startswith("lraspp") else ["out", "aux"], (2, 4, 48, 32)
    )


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (TorchvisionModel(name="resnet18"), (1, 28, 28), "takes images of 3 channels, the data's have 1"),
        (TorchvisionModel(name="resnet18", args={"widht": 2}), (3, 32, 32), "torchvision's resnet18.*widht"),
        (TorchvisionModel(name="resnet18", args={"weights": "DEFAULT"}), (3, 32, 32), "model.pretrained=true"),
        (TorchvisionModel(name="vit_b_16"), (3, 32, 48), "takes square images, the data's are 32×48"),
        (TorchvisionModel(name="vit_b_16"), (3, 33, 33), "vit_b_16"),
        (Cnn(), (2,), r"takes images \(channels, height, width\), the data's shape is \[2\]"),
        (Cnn(), None, "cnn needs the data's shape; give the data set such an attribute"),
    ],
)
def test_what_cannot_be_built_says_why(config, shape, message):
    with pytest.raises(UserError, match=message):
        build(config, shape)


class Told(nn.Linear):
    """A user's model that asks for the number of classes."""

    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__(width, classes)


class Untold(nn.Linear):
    """One that doesn't, and whose weights come from every generator there is."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.weight.data += np.random.rand() + random.random()


def no_module():
    return 3


def test_the_users_own():
    told = build(CustomModel(name=f"{__name__}:Told", args={"width": 6}), shape=None, classes=5)
    assert isinstance(told, Told) and (told.in_features, told.out_features) == (6, 5)
    assert build(CustomModel(name=f"{__name__}:Told", args={"classes": 3}), classes=5).out_features == 3
    untold = CustomModel(name=f"{__name__}:Untold")
    assert torch.equal(build(untold, None, None).weight, build(untold, None, None).weight)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("Told", {"widht": 3}, r"Told\(classes, width=4\) cannot be called so: .*widht"),
        ("no_module", {}, "gave a int, no torch.nn.Module"),
        ("Missing", {}, "Missing"),
    ],
)
def test_the_users_own_with_a_mistake(name, args, message):
    with pytest.raises(UserError, match=message):
        build(CustomModel(name=f"{__name__}:{name}", args=args))


# ---------------------------------------------------------------- gpt


def gpt(vocabulary=17, context=12, **keys) -> nn.Module:
    config = Gpt(**{"layers": 3, "heads": 2, "width": 8, **keys})
    return models.build(config, shape=(context,), classes=None, vocabulary=vocabulary, seed=0).eval()


def test_gpt_is_torchs_encoder_layer_with_a_causal_mask():
    model = gpt()
    tokens = torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(0))
    hidden = model.tokens(tokens) + model.positions.weight
    mask = nn.Transformer.generate_square_subsequent_mask(12)
    for block in model.blocks:
        reference = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True, bias=False)
        reference.load_state_dict(
            {
                "self_attn.in_proj_weight": block.attention.inputs.weight,
                "self_attn.out_proj.weight": block.attention.output.weight,
                "linear1.weight": block.wide.weight,
                "linear2.weight": block.narrow.weight,
                "norm1.weight": block.norm1.weight,
                "norm2.weight": block.norm2.weight,
            }
        )
        hidden = reference(hidden, src_mask=mask, is_causal=True)
    torch.testing.assert_close(model(tokens), model.norm(hidden) @ model.tokens.weight.T)


def test_gpt_looks_back_alone_and_takes_shorter_texts():
    model = gpt()
    tokens = torch.arange(12)[None]
    changed = tokens.clone()
    changed[0, 7] = 16
    one, two = model(tokens), model(changed)
    assert torch.equal(one[:, :7], two[:, :7]) and not torch.equal(one[:, 7:], two[:, 7:])
    torch.testing.assert_close(model(tokens[:, :5]), one[:, :5])


def test_gpt_has_the_sizes_of_gpt2_and_begins_with_the_loss_of_a_guess():
    """124 M with positions and norms, as nanoGPT counts GPT-2 without its biases."""
    with torch.device("meta"):
        large = GPT(Gpt(layers=12, heads=12, width=768), 1024, 50257)
    biases = 12 * (2 * 768 + 3 * 768 + 768 + 4 * 768 + 768) + 768
    assert parameters(large) == 124_439_808 - biases
    model = gpt(vocabulary=1000, layers=8, width=64)
    narrow, wide = model.blocks[0].narrow.weight, model.blocks[0].wide.weight
    assert narrow.std().item() == pytest.approx(0.02 / 4, rel=0.05) and wide.std().item() == pytest.approx(
        0.02, rel=0.05
    )
    tokens = torch.randint(0, 1000, (8, 13), generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), rel=0.01)


def test_gpt_needs_tokens_and_heads_of_one_size():
    with pytest.raises(UserError, match="gpt needs the data's vocabulary"):
        models.build(Gpt(), shape=(3, 8, 8), classes=10, seed=0)
    with pytest.raises(ValidationError, match="width 10 is no multiple of heads 4"):
        Gpt(width=10, heads=4)


def test_a_model_of_ones_own_is_told_the_vocabulary():
    config = CustomModel(name="torch.nn:Embedding", args={"num_embeddings": 3, "embedding_dim": 2})
    assert models.build(config, shape=(4,), classes=None, vocabulary=9, seed=0).num_embeddings == 3
    own = CustomModel(name="tests.unit.dist_train.models.test_models:Own")
    assert models.build(own, shape=(4,), classes=None, vocabulary=9, seed=0).tokens.num_embeddings == 9


class Own(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, 2)
