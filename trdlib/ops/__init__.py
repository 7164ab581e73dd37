"""The ops room: what happens around the method, and shapes no result. The command line (cli), what
a scale will cost (plan), what this machine can run (doctor), a notebook over many values (sweep),
what a notebook takes, gives and depends on (notebooks), what notebooks share (chain)."""
