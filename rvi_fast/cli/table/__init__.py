"""`rvi-fast impute FILE --out FILE`: a table read as it stands, its empty cells filled in.

Every cell is read as text, so that what is observed comes out byte for byte.
"""
