"""Parts of the imputation benchmark: tables, missing entries, peers, processes, scores, report.

`bench/imputers.py` is its command line and `bench/imputation/images.py` that of images. What runs in
a process of its own (`worker`, and the peers it knows) imports nothing of rvi_fast unless the imputer
is one of ours, so that it runs in other environments too.
"""
