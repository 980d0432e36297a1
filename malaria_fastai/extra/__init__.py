"What only some need: not in the star import, and nothing else of the library reaches into it."
