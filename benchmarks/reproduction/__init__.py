"""What `reproduce_tables.py` runs and reports.

`rows` names the trainings, `scales` says how large they are, `settings` makes a configuration of both, `runner` trains
what is missing, `records` keeps what counts of it; `claims`, `statistics`, `tables` and `report` read the records.
"""
