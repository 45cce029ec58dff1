"""Files that cluster engines run a recipe from: text in, one file out; the engines do the rest."""
