"""Files, hub, machine, console, resizing and color: helpers that every room may import; they import no room."""
