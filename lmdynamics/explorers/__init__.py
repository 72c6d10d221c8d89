"""Charts with controls. An explorer selects and draws; measurements compute what it shows."""
