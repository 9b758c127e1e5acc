"""Arrow schemas of the records that stages exchange."""

import pyarrow as pa

# One row per kept image. offset and size locate the image's bytes inside the (uncompressed) shard.
SAMPLES = pa.schema(
    [
        ("key", pa.string()),  # unique in the dataset, stable between ingests of the same source
        ("split", pa.string()),  # "train" or "test"
        ("label", pa.int32()),  # index into the manifest summary's "classes"; -1 where there is none
        ("caption", pa.string()),  # may be null
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("shard", pa.string()),  # name inside the artifact, e.g. "shards/train-000000.tar"; indexed in place: a URI
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),  # of the image's bytes
    ]
)

# One row per file that an ingest of remote data, or in place, read.
SOURCES = pa.schema(
    [
        ("file", pa.string()),  # URI
        ("size", pa.int64()),
        ("tag", pa.string()),  # of S3 and https: ETag, else time of change; null of a file of this machine
    ]
)

# One row per image that was refused.
REJECTED = pa.schema([("source", pa.string()), ("reason", pa.string())])

# One row per decision. "poison" and "recode" rows take the place of source_key's image, "add" rows are new samples.
POISON_PLAN = pa.schema(
    [
        ("key", pa.string()),  # of the overlay sample: "poison-000000" where added, else equal to source_key
        ("source_key", pa.string()),  # the image it is made from; an added one's may be of either split
        ("action", pa.string()),  # "poison" (altered), "recode" (clean, same codec) or "add" (a new pair)
        ("label", pa.int32()),  # the source's own
        ("sub_seed", pa.int64()),  # seeds the placement, or the pixel noise
        ("caption", pa.string()),  # of an added pair; null: the source's own stay
    ]
)

# The columns after POISON_PLAN's of an attack whose poisons are made of two images each.
PARTNERS = pa.schema(
    [
        ("partner_key", pa.string()),  # the other image
        ("partner_role", pa.string()),  # what it is to the attack: "reference", "background", ...
    ]
)

# The plan's rows once crafted: what was stamped where, and the overlay's bytes.
OVERLAY = pa.schema(
    [
        *POISON_PLAN,
        ("box_x", pa.int32()),  # left edge in px of the stored frame; -1 where nothing was stamped
        ("box_y", pa.int32()),
        ("box_width", pa.int32()),
        ("box_height", pa.int32()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
    ]
)

# The columns after OVERLAY's of such an attack.
COMPOSED = pa.schema([*PARTNERS, ("stretch", pa.float32())])  # width over height as it was made over that as stored

# One row per trusted image of a defence.
TRUSTED = pa.schema([("key", pa.string())])

# One row per training sample that a filter judged.
FILTERED = pa.schema(
    [
        ("key", pa.string()),
        ("score", pa.float64()),  # larger is more suspicious; null: nothing is said
        ("p_value", pa.float64()),  # null: no score, trusted itself, or no trusted references
        ("is_left_out", pa.bool_()),
    ]
)

# One row per sample or input that a detector judged, or one for an encoder, whose key is empty.
DETECTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("score", pa.float64()),  # null: nothing was found to score
        ("p_value", pa.float64()),  # null: the detector gives none
        ("is_positive", pa.bool_()),  # poisoned, or triggered; of an encoder: trained on poison
    ]
)

# One row per logged step of a training.
CURVES = pa.schema([("step", pa.int64()), ("epoch", pa.float64()), ("name", pa.string()), ("value", pa.float64())])

# One row per test image, condition and probe.
PREDICTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("condition", pa.string()),  # "clean", "triggered", or "unseen_trigger_1" and on, one for each pattern
        ("probe", pa.string()),  # e.g. "knn", "linear_100", "linear_sgd_1"
        ("predicted", pa.int32()),
    ]
)

# One row per target image x' and probe.
TARGETS = pa.schema(
    [
        ("key", pa.string()),  # of x', a test image
        ("label", pa.int32()),  # its own class
        ("target_label", pa.int32()),  # y'
        ("probe", pa.string()),
        ("predicted", pa.int32()),
        ("rank", pa.int32()),  # of y' among the probe's scores; 1 is first
    ]
)

# A histogram of the cosine over distinct pairs of test images: one row per condition and bin [low, high). Besides the
# conditions of PREDICTIONS "clean_same_label": the clean pairs that a probe gives one label.
SIMILARITY = pa.schema(
    [("condition", pa.string()), ("low", pa.float64()), ("high", pa.float64()), ("num_pairs", pa.int64())]
)

# One row per number. low and high may be null: then no interval applies, and the definition says why.
MEASUREMENTS = pa.schema(
    [
        ("name", pa.string()),
        ("condition", pa.string()),
        ("probe", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("definition", pa.string()),
    ]
)
