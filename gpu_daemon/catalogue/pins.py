"""Repositories of the hub that are known: one commit of each, and what its files must be.

Commits and hashes agree in many public repositories that pin them, each on its own: for community-1 search for
7ad24338d844fb95985486eb1a464e32d229f6d7a03c9abe60f978bacf3f816e, for 3.1 and what it names for
da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298 and
366edf44f4c80889a3eb7a9d7bdf02c4aede3127f7dd15e274dcdb826b143c56. The config.yaml of 3.1 is known by its git blob,
5402e3ca79b6cfa5b0ec283eed920cafe45ee39b; the SHA-256 is that of the 469 bytes that make this blob.
"""

from collections.abc import Mapping
from types import MappingProxyType

from gpu_daemon.catalogue.hub import HubFile, Listing

_COMMUNITY_1 = (
    HubFile(
        path="config.yaml",
        size_bytes=444,
        sha256="5ce2bfa9a938dc132cec1172592d65173cbb8f444ea1e4133f10f9391de155be",
    ),
    HubFile(
        path="segmentation/pytorch_model.bin",
        size_bytes=5_906_507,
        sha256="7ad24338d844fb95985486eb1a464e32d229f6d7a03c9abe60f978bacf3f816e",
    ),
    HubFile(
        path="embedding/pytorch_model.bin",
        size_bytes=26_646_242,
        sha256="6f10ff60898a1d185fa22e1d11e0bfa8a92efec811f11bca48cb8cafebefd929",
    ),
    HubFile(
        path="plda/plda.npz",
        size_bytes=133_852,
        sha256="9b77bcd840692710dd3496f62ecfeed8d8e5f002fd991b785079b244eab7d255",
    ),
    HubFile(
        path="plda/xvec_transform.npz",
        size_bytes=134_376,
        sha256="325f1ce8e48f7e55e9c8aa47e05d2766b7c48c4b25b8de8dd751e7a4cc5fbe8f",
    ),
)

_KNOWN = (
    Listing(
        repository="pyannote/speaker-diarization-community-1",
        revision="3533c8cf8e369892e6b79ff1bf80f7b0286a54ee",
        files=_COMMUNITY_1,
    ),
    # A copy of it that asks for no account: the same files.
    Listing(
        repository="pyannote-community/speaker-diarization-community-1",
        revision="8a527374977391da736e0daaef26855d949d9685",
        files=_COMMUNITY_1,
    ),
    Listing(
        repository="pyannote/speaker-diarization-3.1",
        revision="84fd25912480287da0247647c3d2b4853cb3ee5d",
        files=(
            HubFile(
                path="config.yaml",
                size_bytes=469,
                sha256="04ad9cd59a93c3a7c754200ecc9e1c4ba87bf1657ef8a4debf7555e711daeeda",
            ),
        ),
    ),
    Listing(
        repository="pyannote/segmentation-3.0",
        revision="e66f3d3b9eb0873085418a7b813d3b369bf160bb",
        files=(
            HubFile(
                path="pytorch_model.bin",
                size_bytes=5_905_440,
                sha256="da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298",
            ),
        ),
    ),
    Listing(
        repository="pyannote/wespeaker-voxceleb-resnet34-LM",
        revision="837717ddb9ff5507820346191109dc79c958d614",
        files=(
            HubFile(
                path="pytorch_model.bin",
                size_bytes=26_645_418,
                sha256="366edf44f4c80889a3eb7a9d7bdf02c4aede3127f7dd15e274dcdb826b143c56",
            ),
        ),
    ),
)

PINS: Mapping[str, Listing] = MappingProxyType({listing.repository: listing for listing in _KNOWN})
