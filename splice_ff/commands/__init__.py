"""The commands of `splice-ff`, a function each.

They import what needs torch inside their functions: `splice-ff --help` reads all of them and should answer at once.
"""
