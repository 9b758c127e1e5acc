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
        ("shard", pa.string()),  # file name inside the artifact, e.g. "shards/train-000000.tar"
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),  # of the image's bytes
    ]
)

# One row per image that was refused.
REJECTED = pa.schema([("source", pa.string()), ("reason", pa.string())])

# One row per decision. "replace": the overlay's image takes the place of source_key's.
POISON_PLAN = pa.schema(
    [
        ("key", pa.string()),  # key of the overlay sample; equals source_key for a replacement
        ("source_key", pa.string()),
        ("action", pa.string()),  # "poison" (stamped) or "recode" (clean, but through the same codec)
        ("label", pa.int32()),
        ("sub_seed", pa.int64()),  # seeds the placement
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

# One row per trusted image of a defence.
TRUSTED = pa.schema([("key", pa.string())])

# One row per logged step of a training.
CURVES = pa.schema([("step", pa.int64()), ("epoch", pa.float64()), ("name", pa.string()), ("value", pa.float64())])

# One row per test image, condition and probe.
PREDICTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("condition", pa.string()),  # "clean", "triggered" or "unseen_trigger"
        ("probe", pa.string()),  # e.g. "knn", "linear_100", "linear_sgd_1"
        ("predicted", pa.int32()),
    ]
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
