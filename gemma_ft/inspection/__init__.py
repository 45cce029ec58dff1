"""The inspection room: prepared data as a page, so that a person sees what a model will learn."""
