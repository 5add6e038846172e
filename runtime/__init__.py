"""The machine: chip description, instruction set, program, numerics, and the two executors."""
