"""The page that `splice-ff app` serves: `page.py` lays it out, `work.py` does what its buttons ask for."""
