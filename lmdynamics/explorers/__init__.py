"""Charts with controls around them. An explorer steers and draws; what it shows, measurements have computed."""
