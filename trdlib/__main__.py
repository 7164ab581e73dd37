from trdlib.ops.cli import program

program()
