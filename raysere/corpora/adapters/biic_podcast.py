"""BIIC-Podcast: natural Taiwanese Mandarin from podcasts, collected and labelled as MSP-Podcast
was.

Upadhyay, Chien, Su, Goncalves, Wu, Salman, Busso, Lee, "An Intelligent Infrastructure Toward Large
Scale Naturalistic Affective Speech Corpora Collection", ACII 2023. Release 1.01: parts Train,
Development and Test, attributes from 1 to 7, names such as ``BIIC-PODCAST_1000_0321_0003``.
"""

from __future__ import annotations

from raysere.corpora.adapters.msp_podcast import MspPodcast


class BiicPodcast(MspPodcast):
    """The layout and the options of :class:`MspPodcast`: ``Labels/labels_consensus.csv``,
    ``Labels/labels_detailed.csv``, ``Audios/`` and ``Transcripts/``.
    """

    name = "biic-podcast"
    language = "cmn"
    licence = "by agreement with the BIIC Lab, National Tsing Hua University (academic)"
    homepage = "https://biic.ee.nthu.edu.tw/open_resource_detail.php?id=63"
    layout = MspPodcast.layout.replace("MSP-PODCAST_0001_0008", "BIIC-PODCAST_1000_0321_0003")
    title = "BIIC-Podcast"
    notes = (
        "biic-podcast: the labels other (O) and no_agreement (X) are kept as labels; the class map challenge8 leaves both out.",
        "biic-podcast: in the votes all words that are not one of the eight emotions are other.",
    )
