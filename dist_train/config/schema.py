"""What a user may write in a run's YAML file: the one schema, read by the launcher and by every rank.

Every section is frozen and refuses unknown keys. A component (data, model, task, optimizer, schedule) is chosen by its
`name`: one of ours, or the user's own `package.module:Thing`, built with `args`.
"""

import os
import shlex
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dist_train.config.metrics import lower_is_better
from dist_train.config.problems import alternatives, did_you_mean, shown
from dist_train.config.torchvision_names import SEGMENTS, TorchvisionName
from dist_train.config.types import (
    AnyDuration,
    Bool,
    Bytes,
    CommandPath,
    CommandWords,
    Count,
    Duration,
    Extension,
    Files,
    Float,
    Fraction,
    ImportPath,
    Int,
    NonNegative,
    Positive,
    RunName,
    SlurmArray,
    SlurmConstraint,
    SlurmGpus,
    SlurmMemory,
    SlurmNames,
    SlurmOption,
    SlurmTime,
    TimeDuration,
    TrainingDuration,
    TrainingDurationOrZero,
    UserPath,
)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        defer_build=True,  # of what is never used by itself
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    executes: ClassVar[tuple[str, ...]] = ()
    """Of a job's section: keys that it executes, or that may make it do so. A stranger's need --trust."""


class Custom(Section):
    """The user's own component, imported by every rank."""

    name: ImportPath
    """`package.module:Thing`, importable from the folder the command runs in."""
    args: dict[str, Any] = {}
    """Keyword arguments for it. One that is itself `{name: package.module:Thing, args: {…}}` is built first."""


def is_component(value: Any) -> bool:
    """Whether an argument is a name with args, to be built."""
    if not (isinstance(value, dict) and isinstance(value.get("name"), str) and ":" in value["name"]):
        return False
    try:
        return bool(Custom.model_validate(value))
    except ValueError:
        return False


def _tag(value: Any) -> str | None:
    """Which member of a union a section belongs to; pydantic asks for plain mappings and for built sections alike."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if not isinstance(name, str):
        return None
    if ":" in name:
        return "custom"
    return "torchvision" if name in TorchvisionName.__args__ else name  # type: ignore[attr-defined]


# ---------------------------------------------------------------- data


class _DataSwitches(Section):
    on_error: Literal["stop", "substitute"] = "stop"
    """When a training sample cannot be read. `substitute`: train on another one of the training set in its place, drawn
    from the seed, and say which."""
    max_broken: Fraction = 0.01
    """Largest share of the training samples, rounded up, that may be broken; with more of them the run ends with exit
    code 13. The same goes for an evaluation that skips them."""


class _SeededSplit(_DataSwitches):
    split: Literal["random", "stratified"] = "random"
    """How the samples that are held out are drawn: from all, or a share of each class, so that every class that has two
    samples is in both splits."""
    split_seed: Int = 0
    """The seed that draws them."""


class OnDevice(Section):
    """Images that are held in memory."""

    cache: Literal["device"] | None = None
    """`device`: all images stay on the rank's device as bytes, and are cropped, flipped and normalised there."""


class Digits(_SeededSplit, OnDevice):
    """scikit-learn's 1,797 handwritten digits, 8×8 pixels, in the package: no download."""

    name: Literal["digits"] = "digits"
    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    """Share of the samples held out for evaluation."""


class ImageCache(Section):
    """Decoded images on disk, so that each file is decoded once; all ranks of a node, and later runs, read the same.
    `disk` stands for this section with its defaults, `device` for one with `device: true`."""

    device: Bool = False
    """Have all images in memory from before the first step on: on a GPU each rank has them there, as bytes; on a CPU
    all ranks of a node share one copy. Refused if they do not fit."""
    folder: UserPath | None = None
    """Where they are kept. Without it, dist-train/images in XDG_CACHE_HOME, else in ~/.cache."""
    side: Count | None = None
    """Shorter side of what random_resized_crop cuts from, in pixels; larger images are made smaller first. Needed with
    random_resized_crop, and for it alone. The result depends on it."""
    limit: Bytes | None = None
    """The most that is kept. Without it, as much as leaves 5 % of the file system free."""
    check: Literal["time", "content"] = "time"
    """How a file that has changed is noticed when its image is first read from the cache. `time`: by its size and time
    of modification. `content`: by a hash of all its bytes, which are read for it."""


def _section_of_cache(value: Any) -> Any:
    if isinstance(value, str) and value not in ("disk", "device"):
        raise PydanticCustomError("value", "must be disk, device, a section of keys, or null")
    return {"device": value == "device"} if isinstance(value, str) else value


_WORDS_OF_CACHE = ImageCache | Literal["disk", "device"] | None
CacheOfImages = Annotated[ImageCache | None, BeforeValidator(_section_of_cache, json_schema_input_type=_WORDS_OF_CACHE)]


def _folder_of_before(value: Any) -> Any:
    """Earlier runs have the folder of their tokens or tables under `cache`."""
    if not isinstance(value, dict) or "cache" not in value or "cache_folder" in value:
        return value
    folder = value["cache"]
    if not (isinstance(folder, str) and os.sep in folder) and (folder is not None or value.get("name") != "text"):
        return value
    return {**{key: item for key, item in value.items() if key != "cache"}, "cache_folder": folder}


class ImageFolder(_SeededSplit):
    """JPEG, PNG, BMP, WebP, TIFF or GIF files in one folder per class."""

    name: Literal["image_folder"] = "image_folder"
    root: UserPath
    """The folder."""
    train: UserPath | None = None
    """Folder of the training images under root. Without it, root itself holds the classes."""
    eval: UserPath | None = None
    """Folder of the evaluation images under root."""
    test: UserPath | None = None
    """Folder of the test images under root, for the best checkpoint at the very end."""
    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Share of the training images held out for evaluation where `eval` names no folder."""
    image_size: Count = 224
    """Height and width of the images that the model gets, in pixels."""
    resize: Count | None = None
    """Shorter side before the centre crop, in pixels. Without it, image_size."""
    cache: CacheOfImages = None
    """Keep decoded images, so that a file is decoded once: on `disk`, also in memory (`device`), or a section with the
    keys of data.cache."""

    @model_validator(mode="after")
    def _one_way_to_evaluate(self) -> "ImageFolder":
        if (self.eval is None) == (self.eval_fraction is None):
            raise PydanticCustomError("rule", "give either eval, a folder, or eval_fraction, a share held out")
        if self.train is None and (self.eval is not None or self.test is not None):
            raise PydanticCustomError("rule", "with an eval or test folder the training folder needs a name: train")
        if self.resize is not None and self.resize < self.image_size:
            raise PydanticCustomError("rule", f"resize is {self.resize}, smaller than image_size {self.image_size}")
        return self


class _TorchvisionData(_SeededSplit, OnDevice):
    root: UserPath = "data"
    """Folder of the files. Missing files are downloaded into it."""
    download: Bool = True
    """Whether missing files are downloaded."""
    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Share of the training images held out for evaluation; the official test images are then the test split.
    Without it, they are the evaluation split."""


class Cifar10(_TorchvisionData):
    """60,000 colour images of 32×32 pixels, 10 classes."""

    name: Literal["cifar10"] = "cifar10"


class Cifar100(_TorchvisionData):
    """60,000 colour images of 32×32 pixels, 100 classes."""

    name: Literal["cifar100"] = "cifar100"


class Mnist(_TorchvisionData):
    """70,000 grey images of 28×28 pixels, 10 digits."""

    name: Literal["mnist"] = "mnist"


class FashionMnist(_TorchvisionData):
    """70,000 grey images of 28×28 pixels, 10 kinds of clothing."""

    name: Literal["fashion_mnist"] = "fashion_mnist"


class Synthetic(_DataSwitches, OnDevice):
    """Generated images that can be learned, of any shape and number. Each is a function of its index."""

    name: Literal["synthetic"] = "synthetic"
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)] = [3, 32, 32]
    """Channels, height, width."""
    classes: Annotated[Int, Field(ge=2)] = 10
    """Number of classes."""
    size: Count = 10_000
    """Training samples."""
    eval_size: Count = 1_000
    """Evaluation samples."""


class _Files(_DataSwitches):
    root: UserPath
    """A file, or a folder."""
    train: UserPath | None = None
    """What is trained on, a file or folder under root. Without it, root itself."""
    eval: UserPath | None = None
    """What is evaluated, under root. Without it, eval_fraction of the training split is held out."""
    test: UserPath | None = None
    """What the best checkpoint is evaluated on at the very end, under root."""

    @model_validator(mode="after")
    def _names_beside_each_other(self) -> Self:
        if self.train is None and (self.eval is not None or self.test is not None):
            raise PydanticCustomError("rule", "with eval or test what is trained on needs a name too: train")
        return self


class _Windows(_DataSwitches):
    context: Count = 256
    """Tokens of an input, T. The target is the same window one token further on."""
    stride: Count | None = None
    """Tokens from the beginning of a training window to that of the next. Without it, context: each token is learned
    once an epoch. 1: a window begins at every token. Evaluation windows always stand side by side."""


class Text(_Files, _Windows):
    """Files of text, UTF-8, tokenised once. A sample is a window of tokens."""

    name: Literal["text"] = "text"
    pattern: str = "*.txt"
    """The files that are read of a folder, at any depth, one after the other in the order of their paths."""
    tokenizer: UserPath = "bytes"
    """`bytes`: 256 tokens. `chars`: each character that there is. Else a file of Hugging Face's tokenizers, JSON, which
    needs the extra `text`."""
    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Share of the tokens held out for evaluation, at the end of the text, where `eval` names nothing."""
    cache_folder: UserPath | None = None
    """Folder of the tokenised texts. Without it, dist-train/tokens in XDG_CACHE_HOME, else in ~/.cache."""

    _folder_of_before = model_validator(mode="before")(_folder_of_before)


class Table(_Files, _SeededSplit):
    """Rows of a .csv file with a header, or of the arrays of a .npz file: numbers to a class, or to numbers."""

    name: Literal["table"] = "table"
    inputs: Annotated[list[str], Field(min_length=1)] = ["*"]
    """Columns that are the input, or arrays of a .npz file: names, or patterns such as `pixel*`. Those of the targets
    are left out."""
    targets: Annotated[list[str], Field(min_length=1)]
    """Columns that are the target, likewise."""
    classes: Literal["auto"] | Bool = "auto"
    """Whether the target is a class, each value of its column one of them. `auto`: where it is text."""
    normalize: Bool = True
    """Subtract from each input its mean over the training split, and divide by its standard deviation there."""
    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    """Share of the rows held out for evaluation, where `eval` names no file."""
    split: Literal["random", "stratified"] = "stratified"
    """How the rows that are held out are drawn: from all, or where there are classes a share of each."""


class Tokens(_Windows):
    """Files of nothing but tokens, as nanoGPT's scripts write them. A sample is a window of tokens."""

    name: Literal["tokens"] = "tokens"
    root: UserPath
    """Their folder."""
    train: UserPath = "train.bin"
    """The file of the training tokens under root."""
    eval: UserPath = "val.bin"
    """The file of the evaluation tokens under root."""
    test: UserPath | None = None
    """The file of the test tokens under root, for the best checkpoint at the very end."""
    dtype: Literal["uint16", "uint32"] = "uint16"
    """Of a token in the files, little-endian."""
    vocabulary: Count
    """How many tokens there are: 50257 for GPT-2's, which nanoGPT rounds up to 50304; 65 for shakespeare_char."""
    tokenizer: UserPath | None = None
    """A file of Hugging Face's tokenizers that the tokens were made with, to turn them into text again."""


class _Parts(_DataSwitches):
    """Files of each split, or a part held out, for samples that may be images."""

    eval_fraction: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Share of the training samples held out for evaluation where `eval` names no files."""
    split_seed: Int = 0
    """The seed that draws the held-out samples."""
    image_size: Count = 224
    """Height and width of the images that the model gets, in pixels."""
    resize: Count | None = None
    """Shorter side before the centre crop, in pixels. Without it, image_size."""
    cache: CacheOfImages = None
    """Keep decoded images, so that a file is decoded once: on `disk`, also in memory (`device`), or a section with the
    keys of data.cache."""

    @model_validator(mode="after")
    def _one_way_to_evaluate(self) -> "_Parts":
        if (getattr(self, "eval", None) is None) == (self.eval_fraction is None):
            raise PydanticCustomError("rule", "give either eval, files, or eval_fraction, a share held out")
        if self.resize is not None and self.resize < self.image_size:
            raise PydanticCustomError("rule", f"resize is {self.resize}, smaller than image_size {self.image_size}")
        return self


class Shards(_Parts):
    """WebDataset tar files as they are. Each is indexed once; then its samples are read at any place in any order."""

    name: Literal["shards"] = "shards"
    train: Files
    """The tars: a pattern such as `shards-{000..099}.tar` or `train/*.tar`, or a list of them."""
    eval: Files | None = None
    """The tars of the evaluation."""
    test: Files | None = None
    """The tars of the test split, for the best checkpoint at the very end."""
    image: Annotated[list[Extension], Field(min_length=1)] = ["jpg", "jpeg", "png", "webp"]
    """Extensions of the member that is the image."""
    target: Extension = "cls"
    """Extension of the member that holds the class: its number or its name, as text or JSON."""
    target_field: str | None = None
    """The field that holds it, where `target` is a JSON object."""
    classes: Count | UserPath | Annotated[list[str], Field(min_length=1)] | None = None
    """How many classes there are, or their names in the order of their numbers, or a file with a name in each line."""
    decode: ImportPath | None = None
    """Your own `package.module:function` instead of image and target: it gets the bytes of a sample's members by
    extension, and returns (input, target)."""
    index_folder: UserPath | None = None
    """Folder for the indices. Without it they are kept beside the tars, or in ~/.cache/dist-train where that cannot be
    written."""

    @model_validator(mode="after")
    def _keeps_images(self) -> "Shards":
        if self.cache is not None and self.decode is not None:
            raise PydanticCustomError("rule", "cache keeps images, and with decode a sample may be anything: drop one")
        return self


class HuggingFaceData(_Parts):
    """Hugging Face's `datasets` on disk, Parquet, Arrow or JSON lines, by columns."""

    name: Literal["huggingface"] = "huggingface"
    train: Files
    """A folder that Dataset.save_to_disk wrote, or files: a pattern such as `train-*.parquet`, or a list of them."""
    eval: Files | None = None
    """The same for the evaluation."""
    test: Files | None = None
    """The same for the test split, for the best checkpoint at the very end."""
    inputs: str | Annotated[list[str], Field(min_length=1)]
    """The column that is the input; of several, the input is a dict."""
    targets: str | Annotated[list[str], Field(min_length=1)]
    """The column that is the target, or several."""
    cache_folder: UserPath | None = None
    """Folder for the Arrow files that Parquet and JSON lines are converted to. Without it, that of `datasets`."""

    _folder_of_before = model_validator(mode="before")(_folder_of_before)


class CustomData(Custom, _DataSwitches):
    """The user's own map-style data set, or a class derived from ImageSet."""

    pad: Float | dict[str, Float] | None = None
    """Fill samples of different sizes up to the largest of their microbatch: with this number, or by name, as in
    `{input: 0, target: -100}` or `{input_ids: 0, labels: -100}`."""


DataConfig = Annotated[
    Annotated[Digits, Tag("digits")]
    | Annotated[ImageFolder, Tag("image_folder")]
    | Annotated[Cifar10, Tag("cifar10")]
    | Annotated[Cifar100, Tag("cifar100")]
    | Annotated[Mnist, Tag("mnist")]
    | Annotated[FashionMnist, Tag("fashion_mnist")]
    | Annotated[Synthetic, Tag("synthetic")]
    | Annotated[Text, Tag("text")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[Table, Tag("table")]
    | Annotated[Shards, Tag("shards")]
    | Annotated[HuggingFaceData, Tag("huggingface")]
    | Annotated[CustomData, Tag("custom")],
    Discriminator(_tag),
]


def _all_of_it(value: Any) -> Any:
    """Of files that are evaluated alone, what `eval` names is there, or without it `train`, or all of root."""
    whole = {"image_folder": ".", "text": ".", "table": ".", "tokens": "val.bin", "shards": None, "huggingface": None}
    if not isinstance(value, dict) or value.get("name") not in whole:
        return value
    own = None if value["name"] == "tokens" else value.get("train")
    files = value.get("eval") or own or whole[value["name"]]
    return {**value, "train": files, "eval": files} if files else value


# ---------------------------------------------------------------- augmentation


class RandomCrop(Section):
    """Zero padding, then a crop of the original size at a random place."""

    name: Literal["random_crop"] = "random_crop"
    padding: Count = 4
    """Pixels added on each side."""


class HorizontalFlip(Section):
    """Mirrors the image from left to right."""

    name: Literal["horizontal_flip"] = "horizontal_flip"
    p: Fraction = 0.5
    """How probable that is."""
    alternate: Bool = False
    """Draw for the first epoch alone, and mirror in every other epoch the images that were not mirrored in the one
    before (Jordan, 2024, section 3.6), so that two epochs show each image both ways."""


class RandomResizedCrop(Section):
    """A random part of the image, resized to the size of the images (Szegedy et al., 2014, section 6). It always comes
    first."""

    name: Literal["random_resized_crop"] = "random_resized_crop"
    scale: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    """Smallest and largest share of the area."""
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [0.75, 4 / 3]
    """Smallest and largest ratio of width to height."""


class ColorJitter(Section):
    """Brightness, contrast and saturation changed at random, in an order drawn for each image, as torchvision's
    ColorJitter does on uint8 images."""

    name: Literal["color_jitter"] = "color_jitter"
    brightness: NonNegative = 0.4
    """The factor is drawn from 1 - x, or 0, to 1 + x. At 0 there is no change; the same goes for the others."""
    contrast: NonNegative = 0.4
    """Of the factor's range: away from the mean grey of the image, or towards it."""
    saturation: NonNegative = 0.4
    """Of the factor's range: away from the grey of each pixel, or towards it. Grey images have none."""


class RandAugment(Section):
    """RandAugment (Cubuk et al., 2019) as torchvision.transforms.v2 has it."""

    name: Literal["rand_augment"] = "rand_augment"
    num_ops: Count = 2
    """Operations that each image goes through, one after the other."""
    magnitude: Annotated[Int, Field(ge=0, le=30)] = 9
    """Their strength; there are 31 levels."""


class Normalize(Section):
    """(pixel / 255 - mean) / std for each channel, in training and evaluation."""

    name: Literal["normalize"] = "normalize"
    mean: Annotated[list[Float], Field(min_length=1)]
    """Of each channel, on the scale 0 to 1."""
    std: Annotated[list[Positive], Field(min_length=1)]
    """Of each channel, on the scale 0 to 1."""

    @model_validator(mode="after")
    def _as_many(self) -> "Normalize":
        if len(self.mean) != len(self.std):
            raise PydanticCustomError("rule", f"mean has {len(self.mean)} values and std {len(self.std)}")
        return self


class Mixup(Section):
    """Convex combinations of two samples and their labels (Zhang et al., 2017), inside a microbatch."""

    name: Literal["mixup"] = "mixup"
    alpha: Positive = 0.2
    """Of the Beta(alpha, alpha) distribution that the weight is drawn from."""


class Cutmix(Section):
    """A rectangle of one sample, pasted into another (Yun et al., 2019), inside a microbatch."""

    name: Literal["cutmix"] = "cutmix"
    alpha: Positive = 1.0
    """Of the Beta(alpha, alpha) distribution that the area is drawn from."""


Augmentation = Annotated[
    RandomCrop | HorizontalFlip | RandomResizedCrop | ColorJitter | RandAugment | Normalize | Mixup | Cutmix,
    Field(discriminator="name"),
]


class LoaderConfig(Section):
    """How samples reach the ranks. Nothing here changes the samples."""

    workers: Annotated[Int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loading processes per rank; 0 loads in the rank itself. `auto`: 0 for data held in memory and for what threads
    can load, else the cores divided among the node's ranks, less the rank's own on a CPU, at most 8."""
    threads: Annotated[Int, Field(ge=0)] | Literal["auto"] = "auto"
    """Threads of a rank without loading processes that load while it computes; 0 loads in the step. Code of your own
    and rand_augment never run in them. `auto`: as many as pay, by what the first steps take."""
    prefetch: Count = 2
    """Microbatches that each loading process or thread keeps ready."""
    pin_memory: Bool = True
    """Use page-locked memory, which copies faster to a GPU. It has no effect on a CPU."""
    retry: TimeDuration = Duration(4.0, "min")
    """How long reading is tried again while the storage is away: a stale handle, an input/output error, a folder that
    is gone. A file that is missing or broken by itself is an error at once."""


# ---------------------------------------------------------------- model


class _ModelSwitches(Section):
    start_weights: UserPath | None = None
    """The weights that the training begins with: a file of safetensors or torch.save, a folder of Hugging Face's, or a
    checkpoint folder of another run."""
    reinit: list[str] = []
    """Patterns of names that start anew instead (`fc.*`), or are left out, if the file alone has them. Without any, the
    classifier starts anew where its classes differ, for models that the config names and those of timm and
    transformers."""
    freeze: list[str] = []
    """Patterns of parameters that are not trained (`layer1.*`). BatchNorm keeps its statistics where they match too."""
    channels_last: Bool | Literal["auto"] = "auto"
    """Use the memory layout NHWC, which is faster for convolutions. `auto`: for the models with convolutions that the
    config names; a run keeps what it began with. A model of your own must ask for it: its `forward` may depend on the
    layout, as `view` does."""
    compile: Bool = False
    """Compile the model with torch.compile."""
    sync_batchnorm: Bool = False
    """Compute the statistics of BatchNorm over all ranks of a step. Needs exact: false."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "_ModelSwitches":
        pretrained = getattr(self, "pretrained", False)
        if pretrained and self.start_weights is not None:
            raise PydanticCustomError("rule", "pretrained and start_weights are two beginnings: give one of them")
        if self.reinit and not pretrained and self.start_weights is None:
            raise PydanticCustomError("rule", "reinit is for what start_weights would give: without, all is new")
        return self

    @property
    def is_channels_last(self) -> bool:
        """`channels_last` with `auto` settled."""
        is_known = isinstance(self, Cnn | ResnetCifar | TorchvisionModel)
        return is_known if self.channels_last == "auto" else self.channels_last


class Mlp(_ModelSwitches):
    """Fully connected layers with ReLU."""

    name: Literal["mlp"] = "mlp"
    hidden: list[Count] = [128]
    """Width of each hidden layer."""
    dropout: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Share of the activations that are dropped after each hidden layer."""


class Cnn(_ModelSwitches):
    """Three convolutions with BatchNorm and ReLU, average pooling, one linear layer: small images, seconds on a CPU."""

    name: Literal["cnn"] = "cnn"
    width: Count = 32
    """Channels of the first convolution; the others have twice and four times as many."""
    dropout: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Share of the activations that are dropped before the linear layer."""


class ResnetCifar(_ModelSwitches):
    """Residual networks for 32×32 images (He et al., 2015, section 4.2)."""

    name: Literal["resnet_cifar"] = "resnet_cifar"
    depth: Int = 20
    """Layers: 6n + 2, so 20, 32, 44, 56, 110."""
    width: Count = 16
    """Channels of the first stage."""

    @field_validator("depth")
    @classmethod
    def _six_n_plus_two(cls, depth: int) -> int:
        if not 8 <= depth <= 6_002 or depth % 6 != 2:
            raise PydanticCustomError("value", "a depth is 6n + 2, such as 20, 32, 44, 56 or 110, and 6002 at most")
        return depth


class Gpt(_ModelSwitches):
    """A decoder-only transformer as nanoGPT's, for data that is made of tokens (Radford et al., 2019)."""

    name: Literal["gpt"] = "gpt"
    layers: Count = 6
    """Blocks of attention and two fully connected layers."""
    heads: Count = 6
    """Of each attention."""
    width: Count = 384
    """Numbers by which a token is represented, a multiple of heads."""
    dropout: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Share that is dropped of the embeddings, of the attention weights, and of what each block adds."""

    @model_validator(mode="after")
    def _heads_of_one_size(self) -> Self:
        if self.width % self.heads:
            raise PydanticCustomError("rule", f"width {self.width} is no multiple of heads {self.heads}")
        return self


class TorchvisionModel(_ModelSwitches):
    """A classifier of torchvision.models, or a model of torchvision.models.segmentation, by its name there."""

    name: TorchvisionName
    args: dict[str, Any] = {}
    """Keyword arguments for it."""
    pretrained: Bool = False
    """Begin with torchvision's own weights, downloaded once a node into torch hub's cache folder."""


class CustomModel(Custom, _ModelSwitches):
    """The user's own torch.nn.Module."""


ModelConfig = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[ResnetCifar, Tag("resnet_cifar")]
    | Annotated[Gpt, Tag("gpt")]
    | Annotated[TorchvisionModel, Tag("torchvision")]
    | Annotated[CustomModel, Tag("custom")],
    Discriminator(_tag),
]


# ---------------------------------------------------------------- task, optimizer, schedule


_RATIOS = ("precision", "recall", "f1")


class Classification(Section):
    """One class of several: accuracy, top-5, precision, recall and F1."""

    reports: ClassVar[tuple[str, ...]] = ("accuracy", "loss", "top5", *_RATIOS, *(f"{name}_micro" for name in _RATIOS))
    """First what picks the best checkpoint; a test compares."""
    name: Literal["classification"] = "classification"
    loss: Literal["cross_entropy", "bce", "focal"] = "cross_entropy"
    """`bce` is a binary decision for each class (Wightman et al., 2021), the mean over the classes; `focal` (Lin et
    al., 2017) counts less what is recognised already."""
    focal_gamma: NonNegative = 2.0
    """How much less; at 0 it is the cross-entropy."""
    label_smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes, in training (Szegedy et al., 2015, section 7)."""


class MultiLabel(Section):
    """Any number of several classes: mean average precision, precision, recall and F1 at a probability of 0.5."""

    reports: ClassVar[tuple[str, ...]] = ("mean_average_precision", "loss", *_RATIOS, "f1_micro")
    name: Literal["multi_label"] = "multi_label"
    loss: Literal["bce", "focal"] = "bce"
    """The mean over the classes; `focal` (Lin et al., 2017) counts less what is recognised already."""
    focal_gamma: NonNegative = 2.0
    """How much less; at 0 it is the binary cross-entropy."""


class Regression(Section):
    """One number or several: mean absolute error, root mean squared error, R²."""

    reports: ClassVar[tuple[str, ...]] = ("rmse", "loss", "mae", "r2")
    name: Literal["regression"] = "regression"
    loss: Literal["mse", "mae", "huber", "smooth_l1"] = "mse"
    """The mean over a sample's numbers."""
    delta: Positive = 1.0
    """The error from which huber and smooth_l1 are linear."""


class Segmentation(Section):
    """A class for each pixel: mean intersection over union, pixel accuracy."""

    reports: ClassVar[tuple[str, ...]] = ("mean_iou", "loss", "pixel_accuracy")
    name: Literal["segmentation"] = "segmentation"
    ignore_index: Int | None = 255
    """Pixels with this target count nowhere."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """`focal` (Lin et al., 2017) counts less what is recognised already."""
    focal_gamma: NonNegative = 2.0
    """How much less; at 0 it is the cross-entropy."""
    aux_weight: NonNegative = 0.5
    """Weight of the second output that some of torchvision's models have in training."""


class LanguageModel(Section):
    """The next token: loss, perplexity, accuracy, bits per byte."""

    reports: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy", "bits_per_byte")
    takes_text: ClassVar[bool] = True
    """An input may be a text, so that a word on the command line need not be a file."""
    name: Literal["language_model"] = "language_model"
    ignore_index: Int = -100
    """Targets of this number count nowhere."""
    label_smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all tokens, in training."""


class HuggingFace(Section):
    """What the own loss of a model of the library transformers takes: a sample is a dict of its inputs."""

    reports: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    takes_text: ClassVar[bool] = True
    name: Literal["huggingface"] = "huggingface"


TaskConfig = Annotated[
    Annotated[Classification, Tag("classification")]
    | Annotated[MultiLabel, Tag("multi_label")]
    | Annotated[Regression, Tag("regression")]
    | Annotated[Segmentation, Tag("segmentation")]
    | Annotated[LanguageModel, Tag("language_model")]
    | Annotated[HuggingFace, Tag("huggingface")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(_tag),
]


class ParameterGroup(Section):
    """Parameters with a learning rate or a weight decay of their own."""

    match: Annotated[list[str], Field(min_length=1)]
    """Patterns of their names (`fc.*`); a parameter belongs to the first group that it matches."""
    lr: Positive | None = None
    """Their peak learning rate, in place of optimizer.lr; the schedule scales both alike."""
    weight_decay: NonNegative | None = None
    """That of their weights; norms and biases have none."""

    @model_validator(mode="after")
    def _says_something(self) -> "ParameterGroup":
        if self.lr is None and self.weight_decay is None:
            raise PydanticCustomError("rule", "a group gives its parameters an lr, a weight_decay, or both")
        return self


class _Grouped(Section):
    groups: list[ParameterGroup] = []
    """Parameters with rates of their own: `match`, patterns of their names, of which the first group that fits counts;
    `lr`, their peak in place of optimizer.lr; `weight_decay` of their weights."""
    layer_decay: Annotated[Float, Field(gt=0, le=1)] | None = None
    """Each layer below the last one learns by this factor slower than the one above it. Layers are the model's numbered
    blocks, what comes before them, and what comes after."""


Betas = Annotated[list[Annotated[Float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]


class Sgd(_Grouped):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    """Peak learning rate, for the global batch."""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Share of the last update that is kept."""
    nesterov: Bool = False
    """Nesterov's form of momentum."""
    weight_decay: NonNegative = 0.0
    """L2 penalty on weights; norms and biases have none."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise PydanticCustomError("rule", "nesterov needs a momentum above 0")
        return self


class AdamW(_Grouped):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017)."""

    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate, for the global batch."""
    betas: Betas = [0.9, 0.999]
    """Decay of the running mean and of the running square."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegative = 0.01
    """Decoupled decay of weights; norms and biases have none."""


class MuonRest(Section):
    """AdamW for what is no hidden matrix: embeddings, the last layer, convolutions, norms, biases."""

    match: list[str] = []
    """Patterns of further matrices that AdamW takes."""
    lr: Positive = 3e-4
    """Its own peak learning rate; the schedule scales both alike."""
    betas: Betas = [0.9, 0.95]
    """Decay of the running mean and of the running square."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay of weights; norms and biases have none."""


class Muon(_Grouped):
    """torch.optim.Muon (Jordan et al., 2024) for the matrices of hidden layers, AdamW for everything else."""

    name: Literal["muon"] = "muon"
    lr: Positive = 0.02
    """Peak learning rate of the matrices, for the global batch."""
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.95
    """Share of the running mean of the gradient that is kept."""
    nesterov: Bool = True
    """Nesterov's form of momentum."""
    filters: Bool = False
    """Take convolutions' filters too, each as a matrix [out, in × height × width]."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay of the matrices."""
    adjust_lr: Literal["original", "match_rms_adamw", "spectral_unclamped"] = "original"
    """How the rate depends on a matrix's shape, as torch's adjust_lr_fn; match_rms_adamw takes AdamW's usual rates."""
    adamw: MuonRest = MuonRest()
    """Everything else."""


class CustomOptimizer(Custom, _Grouped):
    """The user's own torch.optim.Optimizer, built with the parameter groups, lr and args."""

    lr: Positive
    """Peak learning rate, for the global batch."""
    weight_decay: NonNegative = 0.0
    """Given to the group of parameters that are neither norms nor biases."""


OptimizerConfig = Annotated[
    Annotated[Sgd, Tag("sgd")]
    | Annotated[AdamW, Tag("adamw")]
    | Annotated[Muon, Tag("muon")]
    | Annotated[CustomOptimizer, Tag("custom")],
    Discriminator(_tag),
]


class _Warmup(Section):
    warmup: TrainingDurationOrZero = Duration(0.0, "steps")
    """Time over which the learning rate rises linearly from nearly zero to its peak."""


class Constant(_Warmup):
    """The peak learning rate throughout."""

    name: Literal["constant"] = "constant"


class Cosine(_Warmup):
    """Half a cosine from the peak down (Loshchilov and Hutter, 2016, without restarts)."""

    name: Literal["cosine"] = "cosine"
    final: Fraction = 0.0
    """Share of the peak left at the end."""


class OneCycle(Section):
    """Cosine up, then cosine down (Smith and Topin, 2017)."""

    name: Literal["one_cycle"] = "one_cycle"
    rise: Annotated[Float, Field(gt=0, lt=1)] = 0.3
    """Share of the training spent going up."""
    start: Fraction = 0.04
    """Share of the peak at the beginning."""
    final: Fraction = 0.000004
    """Share of the peak left at the end."""


class Step(_Warmup):
    """The learning rate multiplied by gamma at each milestone."""

    name: Literal["step"] = "step"
    milestones: Annotated[list[TrainingDuration], Field(min_length=1)]
    """The times, from the beginning of the training."""
    gamma: Annotated[Float, Field(gt=0, le=1)] = 0.1
    """The factor."""


class Polynomial(_Warmup):
    """(1 - progress) ** power, from the peak down."""

    name: Literal["polynomial"] = "polynomial"
    power: Positive = 1.0
    """1 is a straight line."""
    final: Fraction = 0.0
    """Share of the peak left at the end."""


ScheduleConfig = Annotated[Constant | Cosine | OneCycle | Step | Polynomial, Field(discriminator="name")]


# ---------------------------------------------------------------- the run


class BatchConfig(Section):
    """How many samples one optimizer step sees, whatever the number of ranks."""

    microbatches: Count | Literal["auto", "fit"] = "auto"
    """V: the fixed number of slices that a global batch is cut into. Each is one forward and backward. There are at
    least as many as ranks. `auto` is the world size that the run began with; `fit` the smallest number that fits into
    memory, found before the first step and then kept (docs/exactness.md). A number makes runs of different sizes equal
    to the bit."""
    global_size: Count = 64
    """Samples of one optimizer step, over all ranks. A multiple of microbatches."""

    @property
    def settled(self) -> int:
        """The number of microbatches of a run, which has settled `auto` when it began."""
        assert isinstance(self.microbatches, int)
        return self.microbatches

    @property
    def microbatch_size(self) -> int:
        return self.global_size // self.settled

    @field_validator("global_size")
    @classmethod
    def _divides(cls, size: int, info: Any) -> int:
        parts = info.data.get("microbatches")
        if isinstance(parts, int) and size % parts:
            lower, upper = size // parts * parts, -(-size // parts) * parts
            nearest = f"the nearest are {lower} and {upper}" if lower else f"the smallest is {upper}"
            raise PydanticCustomError("rule", f"{size} does not divide into {parts} microbatches; {nearest}")
        return size


class EarlyStopping(Section):
    """End the training when the best metric no longer improves."""

    patience: Count
    """Evaluations in a row without improvement, after which the training ends. A figure that is not a number is
    none."""
    min_delta: NonNegative = 0.0
    """An improvement is better than the last improvement by more than this. A slow gain counts once it has added up."""


class TrainConfig(Section):
    """How long to train, and how."""

    duration: TrainingDuration = Duration(10.0, "epochs")
    """Length of the whole training, which the schedule spans."""
    stop_after: AnyDuration | None = None
    """Save and end earlier, without changing the schedule."""
    clip_norm: Positive | None = None
    """Largest L2 norm of the gradient; a larger one is scaled down to it."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward and backward pass. Weights and sums stay in fp32."""
    ema_decay: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Keep an exponential moving average of the weights with this decay, and evaluate it."""
    early_stopping: EarlyStopping | None = None
    """End the training when the best metric no longer improves."""
    sanity_check: Bool = True
    """Before the first step of a new run, try a few samples in training, evaluation, saving and loading, so that what
    would fail later fails at once. The result does not change."""
    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """When a loss or gradient is not finite. `skip`: leave the step's update out. `rollback`: also take
    back the updates since the last checkpoint that was due."""


class EvalConfig(Section):
    """When and how to evaluate. The figures do not depend on mode or number of ranks."""

    data: Annotated[DataConfig, BeforeValidator(_all_of_it)] | None = None
    """Evaluate on another data set, with the keys of the section data: what its `eval` names, or all of its files. The
    sizes of its inputs and its classes must be those of the training data."""
    every: TrainingDuration = Duration(1.0, "epochs")
    """Time between evaluations; there is always one at the end."""
    batch_size: Count = 128
    """Samples of one forward pass. The result depends on it, in its last bits."""
    flips: Bool = False
    """Evaluate each image both as it is and mirrored from left to right, by the mean of the two outputs."""
    most_batches: Count | None = None
    """Evaluate no more than the first so many batches of each split. The figures are then those of a part."""
    mode: Literal["sharded", "rank0"] = "sharded"
    """`sharded` divides the batches among the ranks; `rank0` leaves them to rank 0 while the others wait."""
    on_error: Literal["stop", "skip"] = "stop"
    """When a sample to evaluate cannot be read. `skip`: leave it out, count it, and say which."""
    best: str = "auto"
    """The metric that picks the best checkpoint. `auto`: accuracy of a classification, mean_average_precision of
    multi_label, rmse of a regression, mean_iou of a segmentation, else the loss. A figure that is not finite is never
    the best."""
    best_is: Literal["auto", "max", "min"] = "auto"
    """Whether a higher or a lower figure is better. `auto`: lower where the metric's name is that of a loss, an error
    or a perplexity (`val_loss`, `mean_absolute_error`, `error_rate`, `mae`), else higher."""


class CheckpointConfig(Section):
    """When to save and what to keep."""

    every: TrainingDuration = Duration(1.0, "epochs")
    """Time between saves; there is always one at the end."""
    keep: Annotated[Int, Field(ge=2)] = 3
    """Newest checkpoints kept, beside the best one. At least two, so that one damaged file is no loss."""
    background: Literal["auto"] | Bool = "auto"
    """Write in another process while the training goes on. `auto`: where the state is large enough for that to pay."""


class WandbConfig(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online where there are credentials, offline without."""
    project: str | None = None
    """The project that the run is filed under. Without it, WANDB_PROJECT's, else `dist-train`."""
    entity: str | None = None
    """User or team. Without it, WANDB_ENTITY's, else your default."""
    group: str | None = None
    """Runs shown together. Without it, WANDB_RUN_GROUP's."""
    tags: list[str] = []
    """Labels. Without any, WANDB_TAGS's."""
    name: str | None = None
    """What the run is called there. Without it, WANDB_NAME's, else the config's name and the run directory's."""
    notes: str | None = None
    """A description. Without it, WANDB_NOTES's."""
    job_type: str | None = None
    """What kind of run it is among those of its group. Without it, WANDB_JOB_TYPE's."""
    artifacts: Literal["none", "best", "all"] = "none"
    """Checkpoints kept as W&B's artifacts: those that are the best when they are saved, or all."""


class TextsConfig(Section):
    """Texts that a language model writes at each evaluation: the whole in metrics.jsonl, the log of rank 0 and the
    trackers, the beginning on the console. No result depends on them."""

    count: Annotated[Int, Field(ge=0)] = 0
    """How many. The data must know their tokens."""
    prompt: str = " "
    """What each begins with."""
    length: Count = 200
    """Tokens that the model adds."""
    temperature: NonNegative = 0.8
    """The scores are divided by it before a token is drawn. 0 takes the likeliest one."""


class TrackingConfig(Section):
    """Which trackers see the run, and how often. metrics.jsonl is always written."""

    every: TrainingDuration = Duration(10.0, "steps")
    """Interval of the training metrics on console and trackers; metrics.jsonl has every step."""
    wandb: WandbConfig = WandbConfig()
    samples: Bool = False
    """Write samples.jsonl: which samples each step's microbatches were made of."""
    texts: TextsConfig = TextsConfig()
    worst_samples: Annotated[Int, Field(ge=0, le=40)] = 24
    """How many samples of the highest losses the report and the trackers show of each evaluation. 0: none. No result
    depends on it."""
    tensorboard: Bool = False
    """Event files under tensorboard/ in the run directory; needs the extra `tensorboard`."""
    none: ClassVar[tuple[str, ...]] = ("tracking.wandb.mode=disabled", "tracking.tensorboard=false")
    """Overrides with which no tracker sees the run."""

    def grouped(self, name: str) -> "TrackingConfig":
        """With a sweep as the group in W&B, unless the user named one there or in W&B's own variable."""
        if self.wandb.group or os.environ.get("WANDB_RUN_GROUP"):
            return self
        return self.model_copy(update={"wandb": self.wandb.model_copy(update={"group": name})})


class DistributedConfig(Section):
    """The process group."""

    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """`auto`: nccl with GPUs, gloo without."""
    threads_per_rank: Count = 1
    """Intra-op threads of a rank on a CPU. The result depends on it: with another number, sums have another order."""
    timeout: TimeDuration = Duration(30.0, "min")
    """Time after which a collective fails that not all ranks have joined."""
    unused_parameters: Literal["refuse", "allow"] = "refuse"
    """When a loss does not depend on a parameter, as with layers that are dropped, experts, or several heads. `allow`:
    its gradient is zero. That costs a walk through the graph of each microbatch."""
    bucket_mb: Positive | None = None
    """Gradients sent together, in MiB. Without it DDP's own sizes: 25, and a small first one that leaves early. On a
    CPU up to 8 MiB are sent at once, since the cores have nothing to spare for sending early."""


_SET_BY_US: tuple[str, ...] = ("array", "chdir", "error", "help", "job-name", "no-requeue", "ntasks", "ntasks-per-node")
_SET_BY_US += ("open-mode", "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "version")
_SET_BY_US += ("wait", "wrap")
_KEYS_OF_SLURM = ("account", "constraint", "cpus-per-task", "gpus-per-node", "mem", "nodes", "partition", "qos", "time")


class SlurmConfig(Section):
    """The job that `dist-train slurm` submits. Nothing else reads it, and no result depends on it; what is left out is
    the cluster's own default."""

    executes = ("site", "prefix", "python", "options")  # of sbatch's options --export, --container-image, …
    nodes: Count = 1
    """Nodes, each with one launcher, which starts the ranks there."""
    gpus_per_node: SlurmGpus | None = None
    """GPUs on each node, and so ranks: `8`, or with their type `a100:8`."""
    cpus_per_task: Count | None = None
    """Cores on each node, for all its ranks and their loading processes."""
    mem: SlurmMemory | None = None
    """Memory on each node: MB, or with its unit `64G`."""
    time: SlurmTime | None = None
    """Limit of one start of the job: minutes, `HH:MM:SS` or `DAYS-HH:MM:SS`. A training that is not done by then is
    saved, put back into the queue, and goes on."""
    partition: SlurmNames | None = None
    """Where to queue."""
    account: SlurmNames | None = None
    """Who pays."""
    qos: SlurmNames | None = None
    """Quality of service."""
    constraint: SlurmConstraint | None = None
    """Features that the nodes must have: `a100&nvlink`."""
    array: SlurmArray | None = None
    """Tasks of a job array, such as `0-7` or `0-7%2` for two at a time: one run each, `{task}` in an override on the
    command line being its number."""
    signal: Annotated[Int, Field(ge=30, le=65_535)] = 120
    """Seconds before the time limit at which saving begins; three quarters of them may be used for it."""
    prefix: CommandWords = ""
    """Words before the command on every node, as a shell reads them: `apptainer exec --nv image.sif`."""
    python: CommandPath | None = None
    """The Python on the nodes, or in the container. Without it, the one that submits."""
    site: CommandPath | None = None
    """A bash file that the job reads before it starts, such as one that exports a cluster's NCCL variables."""
    options: list[SlurmOption] = []
    """More of sbatch's options, each as `--name=value`."""

    @field_validator("options")
    @classmethod
    def _not_ours(cls, options: list[str]) -> list[str]:
        for option in options:
            name = option[2:].partition("=")[0]
            if name in _KEYS_OF_SLURM:
                raise PydanticCustomError("rule", f"--{name} has a key of its own: slurm.{name.replace('-', '_')}")
            if any(ours.startswith(name) for ours in _SET_BY_US):  # sbatch takes an option's beginning for the option
                raise PydanticCustomError("rule", f"--{name} is set by dist-train itself")
        return options

    @field_validator("prefix")
    @classmethod
    def _words(cls, prefix: str) -> str:
        try:
            words = shlex.split(prefix)
        except ValueError as error:
            raise PydanticCustomError("rule", f"not what a shell could read: {str(error).lower()}") from None
        _no_option(words[0] if words else "")
        return prefix

    @field_validator("python")
    @classmethod
    def _program(cls, python: str | None) -> str | None:
        _no_option(python or "")
        return python


def _no_option(word: str) -> None:
    """srun would take such a word for one of its own options."""
    if word.startswith("-"):
        raise PydanticCustomError("rule", "must begin with a program, not with an option")


class Callback(Custom):
    """The user's own object with any of the methods on_start, on_step, on_evaluation, on_checkpoint and on_end."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class RunConfig(Section):
    """One run: everything its result depends on, and how to watch it."""

    name: RunName = "run"
    """Folder under run_root."""
    run_root: UserPath = "runs"
    """Where run directories are made."""
    seed: Annotated[Int, Field(ge=0)] = 0
    """The seed of every random draw."""
    exact: Bool = True
    """Add gradients in one fixed order, so that the result is the same to the last bit for any number of ranks.
    `false` leaves the order to the all-reduce of the process group."""
    data: DataConfig
    augment: list[Augmentation] = []
    """Applied in this order: first what changes single images, then normalize, then mixup or cutmix; with both of
    these, each microbatch draws one."""
    loader: LoaderConfig = LoaderConfig()
    model: ModelConfig
    task: TaskConfig = Classification()
    optimizer: OptimizerConfig = Sgd()
    schedule: ScheduleConfig = Cosine()
    batch: BatchConfig = BatchConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    callbacks: list[Annotated[Callback, BeforeValidator(_named, json_schema_input_type=Callback | ImportPath)]] = []
    """Objects of your own that are called beside the training, and cannot change it: `package.module:Thing`, or
    `{name, args}`."""
    distributed: DistributedConfig = DistributedConfig()
    slurm: SlurmConfig = SlurmConfig()

    @property
    def evaluated_data(self) -> DataConfig:
        """The data that is evaluated."""
        return self.eval.data or self.data

    @property
    def best(self) -> str:
        """The metric that picks the best checkpoint."""
        own = self.eval.best
        return getattr(self.task, "reports", ("loss",))[0] if own == "auto" else own

    @property
    def best_is(self) -> Literal["max", "min"]:
        """Whether a higher or a lower figure of it is better."""
        if self.eval.best_is != "auto":
            return self.eval.best_is
        return "min" if lower_is_better(self.best) else "max"

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        problems = list(_contradictions(self))
        if problems:
            raise PydanticCustomError("contradiction", "sections contradict each other", {"problems": problems})
        return self


JOB_SECTIONS = tuple(key for key, field in RunConfig.model_fields.items() if getattr(field.annotation, "executes", ()))
"""Sections of jobs. No result depends on them."""


def _contradictions(config: RunConfig) -> Any:
    """Yields (key path, message) for what no section can see alone."""
    best, reported = config.eval.best, getattr(config.task, "reports", None)
    if best != "auto" and reported is not None and best not in reported:
        hint = did_you_mean(best, reported)
        yield "eval.best", f"must be one of {alternatives(reported)}, which the task reports, not {shown(best)}{hint}"
    if config.exact and config.model.sync_batchnorm:
        yield "model.sync_batchnorm", "its sums depend on the number of ranks; set exact: false, or leave it out"
    if config.eval.flips and config.task.name not in ("classification", "multi_label"):
        yield "eval.flips", f"is for classes of whole images, and the task is {config.task.name}: leave it out"
    segments, named = config.model.name in SEGMENTS, isinstance(config.model, TorchvisionModel)
    if named and reported is not None and segments != (config.task.name == "segmentation"):
        gives, other = ("pixel", "resnet18") if segments else ("image", "fcn_resnet50")
        words = (
            f"{config.model.name} gives scores for each {gives}; task {config.task.name} needs a model such as {other}"
        )
        yield "model.name", words
    names = [item.name for item in config.augment]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"augment.{index}", f"{name} is there twice"
    yield from _unfit_caches(config, crops="random_resized_crop" in names)
    order = {"normalize": 1, "mixup": 2, "cutmix": 2}
    for index, (left, right) in enumerate(zip(names, names[1:], strict=False)):
        if order.get(left, 0) > order.get(right, 0):
            yield f"augment.{index + 1}", f"{right} must come before {left}"


def _unfit_caches(config: RunConfig, *, crops: bool) -> Any:
    """What `_contradictions` yields of the sections data.cache and eval.data.cache."""
    for key, data, cuts in (("data", config.data, crops), ("eval.data", config.eval.data, False)):
        if not isinstance(cache := getattr(data, "cache", None), ImageCache):
            continue
        size = getattr(data, "image_size", 0)
        if cuts and (cache.side is None or cache.side < size):
            given = "is not set" if cache.side is None else f"is {cache.side}, smaller than image_size {size}"
            words = f"{given}: random_resized_crop cuts from images whose shorter side has so many pixels, such as"
            yield f"{key}.cache.side", f"{words} {size * 8 // 7}"
        if not cuts and cache.side is not None:
            yield f"{key}.cache.side", "is for random_resized_crop in augment; without that, leave it out"


SAFE_TO_CHANGE = (
    *("name", "run_root", "loader", "tracking", "callbacks", "checkpoint", *JOB_SECTIONS),
    *("data.on_error", "data.max_broken", "data.cache_folder"),
    *("data.cache.device", "data.cache.folder", "data.cache.limit", "data.cache.check"),
    *("eval.data.on_error", "eval.data.max_broken", "eval.data.cache_folder", "eval.data.cache"),
    *("eval.mode", "eval.on_error", "train.stop_after", "train.sanity_check", "distributed.timeout"),
)
"""Keys that may differ when a run is resumed: no result depends on them. Those on broken samples decide whether a
training ends there; where it goes on both ways, both end in the same bits."""
