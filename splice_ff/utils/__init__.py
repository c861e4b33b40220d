"""Files, hub, machine, console, resizing, color, runs of steps: every room may import them; they import no room."""
