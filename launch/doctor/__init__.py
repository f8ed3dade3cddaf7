"""`dist-train doctor`: would a training work here, and is every rank as fast as the others? No torch in this process.

Each module asks one part of the machine and answers with findings (finding.py); what only torch knows is asked of a
process of its own (software.py), and what only ranks can tell of ranks that the launcher starts (ranks.py).
"""
