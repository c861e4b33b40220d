"""How fast it is and how much memory it takes: beside a naive step, and beside what the machine's arithmetic allows."""
