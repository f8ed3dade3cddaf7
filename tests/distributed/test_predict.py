"""What `predict` says: the same bytes on any number of ranks, the model's own answers, one line for a mistake."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dist_train
from dist_train.commands import export, predict
from dist_train.config.requests import ExportRequest, PredictRequest
from dist_train.config.schema import DistributedConfig
from dist_train.errors import ExitCode
from dist_train.parallel.process_group import ProcessGroup
from tests.distributed.kinds import Kind, Net
from tests.distributed.test_language import CONFIG as TEXT
from tests.distributed.test_tasks import BASE
from tests.distributed.training import train

TABLE = """
name: t
data: {name: table, root: {folder}/t.csv, targets: [price], inputs: ["[ab]"]}
model: {name: mlp, hidden: [8]}
task: {name: regression}
optimizer: {name: adamw, lr: 0.01}
batch: {microbatches: 3, global_size: 12}
train: {duration: 1 epochs, ema_decay: 0.5}
eval: {batch_size: 4}
tracking: {wandb: {mode: disabled}}
"""
KINDS = ("classification", "segmentation", "huggingface")
FEW = ("train.sanity_check=false", "train.duration=1 steps")


def all_trained(ranks, folder):
    for path in sorted(folder.glob("*.yaml")):
        assert train(ranks, folder, path.name, path.stem, *FEW) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_ranks):
    folder = tmp_path_factory.mktemp("predict")
    for kind in KINDS:
        section = BASE.format(kind=kind, task=json.dumps({"name": kind})).replace("batch_size: 8", "batch_size: 2")
        (folder / f"{kind}.yaml").write_text(section)
    text = (folder / "classification.yaml").read_text()
    (folder / "choosy.yaml").write_text(
        text.replace('kinds:Net", args: {task: classification}', 'test_predict:Choosy"')
    )
    (folder / "table.yaml").write_text(TABLE.replace("{folder}", str(folder)))
    (folder / "text.yaml").write_text(TEXT.replace("{folder}", str(folder)))
    (folder / "texts").mkdir()
    (folder / "texts" / "words.txt").write_text("the quick brown fox jumps over a lazy dog " * 20)
    draw = np.random.default_rng(0)
    rows = [(b, 3 * a + b, a, "hi" if a > 0 else "lo") for a, b in draw.normal(size=(30, 2)).round(3)]
    (folder / "t.csv").write_text("b,price,a,kind\n" + "".join(f"{b},{p:.3f},{a},{k}\n" for b, p, a, k in rows))
    (folder / "images" / "more").mkdir(parents=True)
    for index in range(5):
        image = Kind("evaluation", "classification")[index][0].permute(1, 2, 0).numpy()
        name = f"more/{index}.png" if index > 2 else f"{index}.png"
        Image.fromarray(image).resize((12, 10) if index == 1 else (8, 8)).save(folder / "images" / name)
    np.savez(folder / "tokens.npz", input_ids=np.arange(26).reshape(2, 13) % 11)
    run_ranks(all_trained, 1, folder)
    return folder


class Choosy(Net):
    """Looks at its inputs, and at what it has seen in training, which no state_dict has."""

    def __init__(self):
        super().__init__("classification")
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, inputs):
        if self.training:
            self.seen += 1.0
        return super().forward(inputs) * (self.seen if inputs.sum() > 0 else 1)


def asked(ranks, folder, *calls):
    """Exit code and what is printed, or the error, of each call: a run, its inputs, and options."""
    os.chdir(folder)
    with ProcessGroup(ranks, DistributedConfig()):
        return [_asked(target, inputs, options) for target, inputs, options in calls]


def _asked(target, inputs, options):
    how = {"trust": True, "as_json": "out" not in options, **options}
    printed, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
            predict.main(PredictRequest(target=target, inputs=inputs, **how))
    except SystemExit as end:
        return end.code, told.getvalue()
    return 0, printed.getvalue()


def answers(run_ranks, folder, *calls):
    [found] = run_ranks(asked, 1, folder, *calls)
    assert [code for code, _ in found] == [0] * len(calls)
    return [json.loads(printed) for _, printed in found]


def test_any_number_of_ranks_gives_the_same_bytes_in_the_order_of_the_inputs(folder, run_ranks):
    (folder / "list").write_text("".join(f"images/{name}.png\n" for name in ("2", "more/4", "0")))
    (folder / "rows").write_text("a,b\n1,2\n3,4\n")
    drawn = {"length": 9, "temperature": 0.9, "seed": 3}
    found = []
    for ranks in (1, 2, 3):
        calls = [("classification", ("-", "images"), {"stdin": "list", "top": 2})]
        calls += [("segmentation", ("images",), {"out": f"masks{ranks}"})]
        calls += [("table", ("t.csv",), {"out": f"t{ranks}.csv"})]
        calls += [("table", ("-",), {"stdin": "rows"}), ("huggingface", ("tokens.npz",), {})]
        calls += [("text", ("a lazy", "dog ", "the", "fox", "jump"), drawn)]
        first, *others = run_ranks(asked, ranks, folder, *calls)
        assert {code for code, _ in first} == {0} and all(printed == "" for rest in others for _, printed in rest)
        files = sorted(path for path in (folder / f"masks{ranks}").rglob("*.png"))
        assert [str(path.relative_to(folder / f"masks{ranks}")) for path in files] == [
            *("0.png", "1.png", "2.png", "more/3.png", "more/4.png")
        ]
        written = [path.read_bytes() for path in (*files, folder / f"t{ranks}.csv")]
        found.append(([printed for _, printed in first], written))
    assert found[0] == found[1] == found[2]
    [listed, *_, texts] = map(json.loads, [found[0][0][0], found[0][0][-1]])
    assert [row["file"] for row in listed[:4]] == ["images/2.png", "images/more/4.png", "images/0.png", "images/0.png"]
    assert [len(row["text"]) for row in texts] == [9] * 5 and len({row["text"] for row in texts}) > 1
    assert not [*folder.glob(".tmp-*")]


def own_answers(ranks, folder):
    """What the loaded models give, as `predict` words it."""
    os.chdir(folder)
    torch.set_num_threads(1)
    files = [f"images/{name}.png" for name in ("0", "1", "2", "more/3", "more/4")]
    found = {}
    with torch.no_grad():
        model = dist_train.load("classification", trust=True)
        found["classification"] = model(model.trained.inputs(*files)).softmax(1).tolist()
        assert not model.training and model.trained.step == 1 and model.trained.classes == ("a", "b", "c")
        model = dist_train.load("table")
        assert model.trained.classes is None and model.trained.shape == (2,)
        found["table"] = model(model.trained.inputs("t.csv"))[:, 0].tolist()
        model = dist_train.load("text", best=False)
        text = "the lazy"
        for _ in range(20):
            tokens = torch.tensor([[model.trained.data["characters"].index(one) for one in text[-16:]]])
            text += model.trained.data["characters"][int(model(tokens)[0, -1].argmax())]
        found["text"] = text
    return found


def test_the_answers_are_those_of_the_loaded_model(folder, run_ranks):
    [expected] = run_ranks(own_answers, 1, folder)
    at_once = {"overrides": ("eval.batch_size=99",)}
    calls = [("classification", ("images",), at_once), ("table", ("t.csv",), at_once)]
    one, prices, texts = answers(run_ranks, folder, *calls, ("text", ("the lazy",), {"length": 20}))
    for row, chances in zip(one, expected["classification"], strict=True):
        assert (row["class"], row["probability"]) == ("abc"[np.argmax(chances)], max(chances))
    assert [row["price"] for row in prices] == expected["table"]
    assert texts[0]["prompt"] + texts[0]["text"] == expected["text"]


def test_a_mask_is_as_large_as_its_picture_and_holds_numbers_of_classes(folder, run_ranks):
    run_ranks(asked, 1, folder, ("segmentation", ("images/1.png", "images/0.png"), {"out": "two"}))
    with Image.open(folder / "two" / "1.png") as mask, Image.open(folder / "two" / "0.png") as other:
        assert (mask.size, mask.mode, other.size) == ((12, 10), "P", (8, 8))
        assert set(np.unique(np.array(mask))) <= {0, 1, 2}
        shares = dict(zip(*np.unique(np.array(other), return_counts=True), strict=True))
        colours = mask.getpalette()[:9]
    assert colours == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    [[row]] = answers(run_ranks, folder, ("segmentation", ("images/0.png",), {}))
    assert row["shares"] == {"abc"[number]: count / 64 for number, count in shares.items()}


def test_a_tables_columns_are_found_by_their_names(folder, run_ranks):
    rows = [line.split(",") for line in (folder / "t.csv").read_text().splitlines()]
    (folder / "other.csv").write_text("".join(f"{a},x,{b}\n" for b, _, a, _ in rows))
    same, other = answers(run_ranks, folder, *(("table", (name,), {}) for name in ("t.csv", "other.csv")))
    assert same == other and [row["row"] for row in same] == list(range(1, 31))


def test_a_mistake_is_one_line_and_leaves_nothing(folder, run_ranks):
    (folder / "broken").mkdir(exist_ok=True)
    whole = (folder / "images" / "1.png").read_bytes()
    for number in range(4):
        (folder / "broken" / f"{number}.png").write_bytes(whole[: len(whole) // (1 + number // 2)])
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "bad.csv").write_text("a,b\n1,2\n3,x\n")
    before = sorted(path.name for path in folder.iterdir())
    calls = {
        ("segmentation", ("broken",), "masks"): (ExitCode.DATA, "cannot read the image broken/2.png"),
        ("segmentation", ("images", "images"), "masks"): (ExitCode.CONFIG, "two pictures would have the mask 0.png"),
        ("segmentation", ("images",), "broken"): (ExitCode.CONFIG, "broken is there already"),
        ("segmentation", ("images",), "nowhere/m.csv"): (ExitCode.CONFIG, "cannot write nowhere/m.csv"),
        ("classification", ("images",), "masks"): (ExitCode.CONFIG, "name a .csv or .json file"),
        ("classification", ("empty",), "o.csv"): (ExitCode.DATA, "empty: no images there"),
        ("classification", ("t.csv",), "o.csv"): (ExitCode.DATA, "column kind is 'hi', no number"),
        ("table", ("images",), "o.csv"): (ExitCode.DATA, "images: this model takes rows of a .csv"),
        ("table", ("bad.csv",), "o.csv"): (ExitCode.DATA, "line 3, column b is 'x', no number"),
        ("text", ("the", "Ölaf"), "o.csv"): (ExitCode.DATA, "there is no token for the character 'Ö'"),
        ("text", ("the", ""), "o.csv"): (ExitCode.DATA, "the text is empty"),
        ("text", ("words.txt",), "o.csv"): (ExitCode.DATA, "words.txt: no such file"),
    }
    asks = [(run, inputs, {"out": out}) for run, inputs, out in calls]
    asks.append(("classification", ("images",), {"top": 4}))
    expected = [*calls.values(), (ExitCode.CONFIG, "--top 4: there are 3 classes")]
    for ranks in (1, 2):
        for found in run_ranks(asked, ranks, folder, *asks):
            for (code, said), (wanted, told) in zip(found, expected, strict=True):
                assert code == wanted and told in said and len(said.strip().splitlines()) == 1, said
    assert sorted(path.name for path in folder.iterdir()) == before


def exported(ranks, folder, *calls):
    """As `asked`, of `export`; where it has worked, also the outputs of the file's model for the five images."""
    os.chdir(folder)
    found = []
    for target, to, kind, inputs in calls:
        printed, told = io.StringIO(), io.StringIO()
        request = ExportRequest(target=target, to=to, format=kind, inputs=inputs, trust=True)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
                export.main(request)
        except SystemExit as end:
            found.append((end.code, told.getvalue()))
        else:
            found.append((0, printed.getvalue()))
    model = dist_train.load("classification", trust=True)
    inputs = model.trained.inputs("images")
    with torch.no_grad():
        expected = model(inputs)
        loaded = Net("classification").eval()
        loaded.load_state_dict(load_file("net/model.safetensors"))
        program = torch.export.load("net.pt2").module()
        outputs = (expected, loaded(inputs), program(inputs), torch.cat([program(one[None]) for one in inputs]))
    return found, [output.tolist() for output in outputs]


def test_an_export_gives_the_models_outputs_or_is_not_kept(folder, run_ranks):
    calls = [("classification", "net", "safetensors", ()), ("classification", "net.pt2", "torch", ("images/0.png",))]
    calls += [("choosy", "c/choosy.safetensors", "safetensors", ()), ("choosy", "choosy.pt2", "torch", ())]
    [(found, (expected, loaded, *programs))] = run_ranks(exported, 1, folder, *calls)
    said = {"9 tensors; read back, and the same bits on 2 inputs": 0, "batches of any size; read back": 0}
    said |= {"outside of its state_dict": ExitCode.USER_CODE, "torch.export cannot take this model": ExitCode.USER_CODE}
    for (code, printed), (told, wanted) in zip(found, said.items(), strict=True):
        assert code == wanted and told in printed and len(printed.strip().splitlines()) == 1, printed
    assert loaded == expected and programs == [pytest.approx(np.array(expected), abs=1e-5)] * 2
    assert not [*folder.glob("choosy.pt2*"), *folder.glob("c/*"), *folder.glob(".tmp-*"), *folder.glob("c/.*")]
    facts = json.loads((folder / "net.json").read_text())
    assert facts["classes"] == ["a", "b", "c"] and facts["inputs"] == [{"dtype": "float32", "shape": [3, 8, 8]}]
    assert facts["config"]["model"]["name"] == "tests.distributed.kinds:Net" and facts["step"] == 1
