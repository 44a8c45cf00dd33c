"""Pure decisions on plain data: distance, placement, admission. No I/O, no clock."""
