"What only some need: not in the star import; of the library, the command alone reaches into it, when it is asked to."
