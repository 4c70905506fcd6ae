"""Language rules that need no model and no network: phrases, hard negatives, checks of both and of captions.

Everything here is a pure function of its arguments: the same texts and seeds give the same results on every supported
Python and in every process. The languages are English (`en`) and Chinese (`zh`).
"""
