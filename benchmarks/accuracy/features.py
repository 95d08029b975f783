"""What the baselines hear: openSMILE's functionals, and the layers of the pretrained encoder from
raysere's own feature store.
"""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy.data import Data, encoder, folder

SMILE = {"egemaps": "eGeMAPSv02", "compare": "ComParE_2016"}


def smile(data: Data, which: str) -> np.ndarray:
    """float64 (N, D) functionals of openSMILE's own configuration; computed once.

    Columns that do not vary are left out.
    """
    path = folder("smile") / f"{data.name}-{which}-{data.manifest.fingerprint[:12]}.npy"
    if not path.is_file():
        import opensmile

        from raysere.features.audio import read_audio

        extractor = opensmile.Smile(getattr(opensmile.FeatureSet, SMILE[which]), opensmile.FeatureLevel.Functionals)
        waves = (read_audio(data.manifest.path(row)) for row in data.manifest.table.iter_rows(named=True))
        table = np.concatenate([extractor.process_signal(wave, 16000).to_numpy() for wave in waves])
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, np.nan_to_num(table).astype(np.float32))
        temporary.rename(path)
    table = np.load(path).astype(np.float64)
    return table[:, table.std(axis=0) > 1e-9 * (1 + np.abs(table).max(axis=0))]


def layers(data: Data, window: str) -> dict[int, np.ndarray]:
    """float64 (N, 2 D) by layer: mean and standard deviation over the frames of the utterance."""
    from raysere.base.cluster import stop_ray
    from raysere.features.extract.run import extract
    from raysere.features.spec import resolve
    from raysere.features.store.store import FeatureStore

    spec, store = resolve(encoder(window)), folder("features")
    try:
        outcome = extract(data.manifest, spec, store)
    finally:
        stop_ray()
    if outcome.quarantined.height:
        raise RuntimeError(f"clips without features: {outcome.quarantined['reason'].to_list()[:3]}")
    view = FeatureStore(store).open(spec, data.manifest)
    return {number: view.matrix(number).astype(np.float64) for number in spec.numbers}
