class Scorer:
    pass


def stored_record(cell, manifest):
    return None
