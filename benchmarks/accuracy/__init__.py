"""How well raysere recognises emotion, against what a careful user of scikit-learn and openSMILE
reaches on the same speaker folds.

``python -m benchmarks.accuracy`` (``make accuracy``) does what is not done yet and draws
``docs/accuracy.md``. Every piece (a corpus, a system, a kind of normalisation) is kept in a folder
of results by speaker, so a second start only goes on. See ``__main__`` for options.
"""
