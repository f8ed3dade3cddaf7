"""Which calls of a stack wait for a GPU: all that our own loop has, and none that merely computes."""

import pytest

from launch.watchdog.evidence import Frame, Process


def process(tmp_path, line: str) -> Process:
    path = tmp_path / "own.py"
    path.write_text(f"{line}\n")
    frames = [Frame(file=str(path), line=1, function="flush")]
    return Process(pid=1, state="R", syscall="", frames=frames)


@pytest.mark.parametrize(
    "line",
    [
        'table[:, numbers, 0] = losses.to("cpu", torch.float64)',
        "table[number] = value.to('cpu', torch.float64)",
        'value.to(device="cpu")',
        'value.to(torch.device("cpu"))',
        "norms = torch.stack(norms).tolist()",
        "self._ends.popleft().synchronize()",
        "view.copy_(source, non_blocking=True)",
        "if not torch.isfinite(get_total_norm(floats, norm_type=math.inf)):",
        "table += self._counts[name].cpu()",
        "array = tensor.numpy()",
    ],
)
def test_a_wait_for_the_gpu_is_one_for_a_collective(tmp_path, line):
    assert process(tmp_path, line).waits == "collective"


@pytest.mark.parametrize(
    "line", ["time.sleep(60)", "while True: pass", 'model.to("cuda")', "answer = connection.recv()", "x = float(y)"]
)
def test_other_lines_are_none(tmp_path, line):
    assert process(tmp_path, line).waits is None
