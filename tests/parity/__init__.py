"""Does the engine hear exactly what `whisper.transcribe` hears?

corpus.py makes what is listened to, case.py says what is asked of it, reference.py listens with openai-whisper,
golden.py keeps what that heard; hear.py puts the engine to it, compare.py says where it differs, margin.py how close
that was, judge.py whether it matters. sweep.py is all of it (`make parity`), test_parity.py a part.
"""
