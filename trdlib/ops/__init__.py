"""The ops room: what happens around the method, and shapes no result: the command line (cli), and
what notebooks share (chain), take, give and depend on (notebooks)."""
