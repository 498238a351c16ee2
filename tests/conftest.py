from hypothesis import settings

# A deadline is a wall-clock assertion: it fails when the machine is busy, not when the code is wrong.
settings.register_profile("lighten", deadline=None)
settings.load_profile("lighten")
