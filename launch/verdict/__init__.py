"""Why a generation failed: the first cause among many deaths, told in a few lines, with the exit code that says it."""

from launch.verdict.advice import port_taken
from launch.verdict.causes import Failure, exit_code, failures, first_cause, is_peer_loss
from launch.verdict.record import as_record, latest, signature
from launch.verdict.text import Scene, explain
from launch.verdict.words import ranges

__all__ = [
    "Failure",
    "Scene",
    "as_record",
    "exit_code",
    "explain",
    "failures",
    "first_cause",
    "is_peer_loss",
    "latest",
    "port_taken",
    "ranges",
    "signature",
]
