from hypothesis import settings

# A deadline asserts a wall-clock time, which a busy machine breaks.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
