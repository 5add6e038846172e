"""The passes of the compiler, one file each: tile, place, schedule, emit."""
