"""The compiler: jaxpr -> graph -> tiles -> SRAM addresses -> cycles -> program."""
