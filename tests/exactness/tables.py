"""The keys whose type does not say what to draw, with the reason; everything else is drawn from its type."""

from typing import Any

PACKAGE = "tests.exactness"
FOLDER = "{folder}"
"""Stands for the folder of a draw's files."""
CLASSES = "{classes}"
"""Stands for the number of classes that the data of a draw has."""

STARTED = "a file, read once before the first step; tests/unit/dist_train/models/test_start_weights.py"
FIXED: dict[str, tuple[Any, str]] = {
    "name": ("run", "a folder's name"),
    "run_root": (None, "a folder"),
    "data.cifar10": (None, "a download; its images are held in memory as those of digits are"),
    "data.cifar100": (None, "a download; its images are held in memory as those of digits are"),
    "data.mnist": (None, "a download; its images are held in memory as those of digits are"),
    "data.fashion_mnist": (None, "a download; its images are held in memory as those of digits are"),
    "data.image_folder.root": (f"{FOLDER}/images", "a folder; it is made for the draw"),
    "data.image_folder.train": (None, "a folder; eval_fraction splits what there is"),
    "data.image_folder.eval": (None, "a folder; eval_fraction splits what there is"),
    "data.image_folder.test": (None, "a folder; the test split is evaluated as the others are"),
    "data.text": (None, "windows of tokens, for one model and task; tests/distributed/test_language.py"),
    "data.tokens": (None, "read as text's are"),
    "data.table": (None, "held in memory as digits are; tests/distributed/test_table.py"),
    "data.shards": (None, "tar files; tests/distributed/test_shards.py"),
    "data.huggingface": (None, "files; tests/distributed/test_huggingface.py"),
    "data.custom.args": (None, "they go with the name: ARGS"),
    "model.gpt": (None, "no data of a draw has tokens; tests/distributed/test_language.py"),
    "model.torchvision.args": (None, "they go with the name: ARGS"),
    "model.custom.args": (None, "they go with the name: ARGS"),
    "task.custom.args": (None, "they go with the name: ARGS"),
    "optimizer.custom.args": (None, "they go with the name: ARGS"),
    "data.custom.pad": (None, "samples of one size have nothing to fill up; tests/distributed/test_tasks.py"),
    "task.multi_label": (None, "targets of another kind than the images of a draw; tests/distributed/test_tasks.py"),
    "task.regression": (None, "targets of another kind than the images of a draw; tests/distributed/test_tasks.py"),
    "task.segmentation": (None, "targets of another kind than the images of a draw; tests/distributed/test_tasks.py"),
    "task.language_model": (None, "targets of another kind than the images of a draw; tests/distributed/test_tasks.py"),
    "task.huggingface": (None, "targets of another kind than the images of a draw; tests/distributed/test_tasks.py"),
    "model.mlp.start_weights": (None, STARTED),
    "model.mlp.reinit": (None, "of the file"),
    "model.cnn.start_weights": (None, STARTED),
    "model.cnn.reinit": (None, "of the file"),
    "model.resnet_cifar.start_weights": (None, STARTED),
    "model.resnet_cifar.reinit": (None, "of the file"),
    "model.torchvision.start_weights": (None, STARTED),
    "model.torchvision.reinit": (None, "of the file"),
    "model.custom.start_weights": (None, STARTED),
    "model.custom.reinit": (None, "of the file"),
    "model.torchvision.pretrained": (False, "a download"),
    "model.mlp.compile": (False, "minutes for each life; tests/distributed/test_exactness.py has a long test"),
    "model.cnn.compile": (False, "minutes for each life; tests/distributed/test_exactness.py has a long test"),
    "model.resnet_cifar.compile": (False, "minutes for each life; tests/distributed/test_exactness.py has a long test"),
    "model.torchvision.compile": (False, "minutes for each life; tests/distributed/test_exactness.py has a long test"),
    "model.custom.compile": (False, "minutes for each life; tests/distributed/test_exactness.py has a long test"),
    "train.stop_after": (None, "every draw is stopped by it and resumed"),
    "eval.data": (None, "the data of a draw has its own; tests/distributed/test_evaluation.py"),
    "callbacks": (["tests.distributed.callbacks:Everywhere"], "of one's own; it draws, and no result may know of it"),
    "tracking.samples": (True, "every draw is compared by it"),
    "tracking.wandb.mode": ("disabled", "needs the network; no result goes through it"),
    "tracking.wandb.project": (None, "a name"),
    "tracking.wandb.entity": (None, "a name"),
    "tracking.wandb.group": (None, "a name"),
    "tracking.wandb.tags": (None, "names"),
    "tracking.wandb.name": (None, "a name"),
    "tracking.wandb.notes": (None, "a text"),
    "tracking.wandb.job_type": (None, "a name"),
    "tracking.texts": (None, "texts of a language model; tests/distributed/test_language.py"),
    "optimizer.muon.adamw.match": (None, "names of hidden matrices; tests/unit/dist_train/optim/test_groups.py"),
    "loader.retry": (None, "seconds; no sample depends on it"),
    "distributed.timeout": (None, "seconds; no result depends on it"),
    "slurm": (None, "the job of a submission; no rank reads it"),
}
"""Keys that are not drawn: (their value, None for the default; the reason)."""

GROUPS: tuple[Any, ...] = ([], [{"match": ["*.weight"], "lr": 0.01}, {"match": ["*"], "weight_decay": 0.1}])
LEVELS: dict[str, tuple[tuple[Any, ...], str]] = {
    "seed": ((0, 7), "small numbers say no more than these"),
    "data.digits.eval_fraction": ((0.02, 0.05), "evaluation sets of some dozens"),
    "data.image_folder.eval_fraction": ((0.2, 0.5), "one of two ways to evaluate has to be given"),
    "data.image_folder.image_size": ((8, 9), "small"),
    "data.image_folder.resize": ((None, 12), "not below image_size"),
    "data.synthetic.shape": (([3, 8, 8], [3, 9, 7]), "small; three channels, as torchvision's models want"),
    "data.synthetic.classes": ((2, 10), "small"),
    "data.synthetic.size": ((50, 1000), "two steps an epoch, and many"),
    "data.synthetic.eval_size": ((1, 33), "small"),
    "data.custom.name": ((f"{PACKAGE}.components:Drawn", f"{PACKAGE}.components:Ready"), "names of classes"),
    "augment.normalize.mean": (([0.5, 0.4, 0.3],), "one for each channel"),
    "augment.normalize.std": (([0.3, 0.2, 0.3],), "one for each channel"),
    "augment.rand_augment.magnitude": ((0, 9, 30), "an ordinary one too"),
    "loader.workers": ((0, 1, 2, "auto"), "small"),
    "model.mlp.hidden": (([16], [16, 8]), "small"),
    "model.cnn.width": ((4, 6), "small"),
    "model.resnet_cifar.depth": ((8,), "6n + 2, and small"),
    "model.resnet_cifar.width": ((4,), "small"),
    "model.mlp.freeze": (([], ["1.bias"]), "names of its parameters"),
    "model.cnn.freeze": (([], ["block1.*"]), "names of its parameters; a BatchNorm that keeps its statistics"),
    "model.resnet_cifar.freeze": (([], ["stage1.*", "norm.weight"]), "names of its parameters, as above"),
    "model.torchvision.freeze": (([], ["*.bias"]), "names that all have"),
    "model.custom.freeze": (([], ["*.bias"]), "names that all have"),
    "model.torchvision.name": (
        ("mnasnet0_5", "shufflenet_v2_x0_5"),
        "the cheapest of 81",
    ),
    "model.custom.name": (
        (
            "torchvision.models:DenseNet",
            "torchvision.models:VisionTransformer",
            "torchvision.models:SwinTransformer",
            "torchvision.models:ShuffleNetV2",
            f"{PACKAGE}.components:Normed",
        ),
        "names of classes: torchvision's families in sizes that its named models do not have",
    ),
    "task.custom.name": ((f"{PACKAGE}.components:Weighed",), "a name"),
    "optimizer.sgd.lr": ((0.05, 0.5), "a training that goes well, and one that may not"),
    "optimizer.adamw.lr": ((0.001, 0.02), "a training that goes well, and one that may not"),
    "optimizer.custom.lr": ((0.001, 0.02), "a training that goes well, and one that may not"),
    "optimizer.custom.name": (
        ("torch.optim:Adagrad", "torch.optim:NAdam", "torch.optim:RMSprop", f"{PACKAGE}.components:Lion"),
        "names of classes",
    ),
    "optimizer.sgd.groups": (GROUPS, "names that all have"),
    "optimizer.sgd.layer_decay": ((None, 0.7), "one that slows and none"),
    "optimizer.adamw.groups": (GROUPS, "names that all have"),
    "optimizer.adamw.layer_decay": ((None, 0.7), "one that slows and none"),
    "optimizer.muon.groups": (GROUPS, "names that all have"),
    "optimizer.muon.layer_decay": ((None, 0.7), "one that slows and none"),
    "optimizer.custom.groups": (GROUPS, "names that all have"),
    "optimizer.custom.layer_decay": ((None, 0.7), "one that slows and none"),
    "optimizer.muon.lr": ((0.005, 0.05), "a training that goes well, and one that may not"),
    "optimizer.muon.adamw.lr": ((0.001, 0.02), "a training that goes well, and one that may not"),
    "schedule.step.milestones": ((["2 steps"], ["1 steps", "48 samples"]), "inside of a short training"),
    "batch.microbatches": (
        (3, 4, 6, 12, "auto"),
        "as many as ranks, no powers of two; of `fit`, tests/failures/test_fit.py",
    ),
    "batch.global_size": ((24,), "divides by all numbers of microbatches"),
    "train.duration": (("3 steps", "70 samples"), "short"),
    "train.clip_norm": ((None, 0.5, 100.0), "one that clips and one that does not"),
    "eval.every": (("2 steps", "72 samples", "1 epochs"), "inside of a short training"),
    "eval.batch_size": ((5, 32), "a share that is not full, and small"),
    "eval.most_batches": ((None, 2), "small"),
    "eval.best": (("auto", "accuracy", "loss"), "a metric of the task"),
    "checkpoint.every": (("1 steps", "2 steps", "1 epochs"), "inside of a short training"),
    "checkpoint.keep": ((2, 3), "small"),
    "distributed.threads_per_rank": ((1, 2), "small"),
    "distributed.bucket_mb": ((None, 0.001, 1.0), "buckets of one parameter, and of all"),
}
"""Keys that are drawn from these values: (the values, the reason)."""

ARGS: dict[str, dict[str, Any]] = {
    "torchvision.models:DenseNet": {
        "growth_rate": 4, "block_config": [2, 2], "num_init_features": 8, "bn_size": 2, "num_classes": CLASSES,
        "memory_efficient": True,
    },
    "torchvision.models:VisionTransformer": {
        "image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16,
        "dropout": 0.1, "num_classes": CLASSES,
    },
    "torchvision.models:SwinTransformer": {
        "patch_size": [2, 2], "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": [2, 2],
        "num_classes": CLASSES,
    },
    "torchvision.models:ShuffleNetV2": {
        "stages_repeats": [1, 1, 1], "stages_out_channels": [8, 16, 32, 32, 32], "num_classes": CLASSES,
    },
}  # fmt: skip
"""Arguments of a component, by its name."""

ONCE: dict[tuple[str, Any], str] = {
    ("exact", False): "the sum is in another order for every number of ranks: compared within a tolerance",
    ("model.sync_batchnorm", True): "refused without exact: false, and on every CPU",
    ("distributed.backend", "nccl"): "refused where there is no GPU",
    ("distributed.threads_per_rank", 2): "threads that spin beside each other where there are fewer cores",
    ("model", "torchvision"): "hundreds of layers: many seconds for each draw",
    ("model.name", "mnasnet0_5"): "one draw of each",
    ("model.name", "shufflenet_v2_x0_5"): "one draw of each",
    ("optimizer.adjust_lr", "match_rms_adamw"): "a factor of the rate by a matrix's shape",
    ("optimizer.adjust_lr", "spectral_unclamped"): "a factor of the rate by a matrix's shape",
    ("optimizer.layer_decay", 0.7): "a factor of the rate, as groups have one",
    ("loader.workers", 2): "0 and 1 are paired with all, and every draw is trained both with processes and without",
    ("loader.workers", "auto"): "a number that is drawn itself",
    ("data.on_error", "substitute"): "no sample of a draw is broken; tests/distributed/test_broken.py",
    ("eval.on_error", "skip"): "no sample of a draw is broken; tests/distributed/test_broken.py",
    ("tracking.tensorboard", True): "a second of imports in each process; no result goes through it",
}
"""Values that are drawn seldom and not in every pair: (the key without its component's name, the value)."""

UNWRITTEN = "strided convolutions of 1 × 1 pixels, whose bf16 gradients torch leaves unwritten; docs/exactness.md"
UNFIT: tuple[tuple[str, Any, str, Any, str], ...] = (
    ("augment.normalize", "present", "data", "digits", "three means are given, and digits have one channel"),
    ("model", "torchvision", "data", "digits", "three channels are wanted, and digits have one"),
    ("model.custom.name", "torchvision.models:", "data", "digits", "three channels are wanted, and digits have one"),
    ("task", "custom", "data.synthetic.eval_size", 1, "its only sample may be of the class that counts nothing"),
    ("task", "custom", "eval.most_batches", 2, "a folder's first samples may all be of the class that counts nothing"),
    ("data.custom.name", f"{PACKAGE}.components:Ready", "data.custom.on_error", "substitute", "it reads whole batches"),
    ("data.custom.name", f"{PACKAGE}.components:Ready", "eval.on_error", "skip", "it reads whole batches"),
    ("model.custom.name", "torchvision.models:Vi", "data.synthetic.shape", [3, 9, 7], "image_size is 8"),
    ("model.custom.name", "torchvision.models:Vi", "data.image_folder.image_size", 9, "image_size is 8"),
    ("train.precision", "bf16", "model", "torchvision", UNWRITTEN),
    ("train.precision", "bf16", "model.custom.name", "torchvision.models:Shuffle", UNWRITTEN),
    ("optimizer", "muon", "model", "cnn", "no matrix but the last"),
    ("optimizer", "muon", "model", "resnet_cifar", "no matrix but the last"),
    ("optimizer", "muon", "model", "torchvision", "no matrix but the last"),
    ("optimizer", "muon", "model.custom.name", "torchvision.models:DenseNet", "no matrix but the last"),
    ("optimizer", "muon", "model.custom.name", "torchvision.models:ShuffleNetV2", "no matrix but the last"),
)
"""Pairs that do not fit each other: (key, value or what it begins with, key, value, reason)."""
