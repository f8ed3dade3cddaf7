"""`dist-train doctor`: would a training work here, and is every rank as fast as the others? No torch in this process.

Each module examines one part of the machine and returns findings (finding.py). A separate process reports what only
torch knows (software.py), and ranks started by the launcher measure each other (ranks.py).
"""
