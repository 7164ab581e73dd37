"""First on the path of every process that a test starts: jsonschema, which papermill imports, takes
the real package for absent, and with it two seconds of building a grammar."""

raise ImportError("not needed in a test")
