"""The schema of a run: every field with its meaning, unit and default."""

from pit_jax.diffusion.names import SAMPLERS, SPACINGS
from pit_jax.field import Field as F

DEEPEST = 1000  # layers: each is compiled
WIDEST = 10**6  # channels
TASKS = ("classification", "mae", "diffusion", "autoencoder", "autoregressive", "depth")
DEPTH = ("scenes", "nyu_depth_v2")  # sets whose images come with depth, and without a class
EVALUATIONS = ("accuracy", "loss", "samples", "generation", "reconstruction", "likelihood", "depth")
EVALUATIONS += ("linear", "knn", "fewshot", "locality")
FIELDS: dict[str, F] = {
    "task": F("classification", "what is trained", choices=TASKS),
    # model
    "model.name": F(
        "vit",
        "architecture; PiT is vit or dit with patch 1",
        choices=("vit", "dit", "autoencoder", "convnet", "perceiver", "igpt"),
    ),
    "model.width": F(
        192,
        "channels of a token; the MLP follows, heads and a decoder's sizes stay as they are",
        low=1,
        high=WIDEST,
    ),
    "model.depth": F(12, "layers", low=1, high=DEEPEST),
    "model.heads": F(12, "attention heads; must divide the width and stay when it changes", low=1),
    "model.mlp": F(0, "hidden units of the MLP; 0 = 4 × width", low=0, high=100 * WIDEST),
    "model.patch": F(1, "side of a patch in pixels; 1 = every pixel a token", low=1),
    "model.position": F("learned", "positions", choices=("learned", "sincos2d", "none")),
    "model.position_std": F(0.02, "standard deviation learned positions start with", low=0.0),
    "model.initial": F(
        "xavier",
        "how weights start: xavier as public DiT's (queries, keys and values as one matrix), mae"
        " the same with the patches' bias as torch's, timm as timm's and DeiT's (normal, 0.02),"
        " separate as the JAX code of ViT (each matrix for itself)",
        choices=("xavier", "mae", "timm", "separate"),
        before="separate",
    ),
    "model.head_std": F(
        0.02, "standard deviation a classifier's head starts with; public MAE fine-tunes from 2e-5",
        low=0.0, before=0.02,
    ),
    "model.pool": F(
        "cls",
        "what the head reads: [CLS], the mean of all tokens without a [CLS] among them, or the"
        " mean of all but [CLS]",
        choices=("cls", "mean", "patches"),
    ),
    "model.order": F(
        "raster",
        "in which patches stand in the sequence: row by row, column by column, rows to and fro,"
        " along Hilbert's curve, or randomly",
        choices=("raster", "columns", "snake", "hilbert", "random"),
    ),
    "model.order_seed": F(0, "which random order that is", low=0, high=2**32 - 1),
    "model.window": F(
        (),
        "tokens see those within this Euclidean distance, in tokens, and [CLS]: () = no windows;"
        " one radius, or one a layer; 0 = itself, negative = everything",
        elements=float, words={(): "none", (-1.0,): "all"},
    ),
    "model.window_layers": F(
        0, "of one radius: only the first so many layers have it, the others see all; 0 = all have",
        low=0, words={0: "all"},
    ),
    "model.token_drop": F(
        0.0, "share of an image's tokens left out in training, others in every step", low=0.0,
        high=0.99,
    ),
    "model.embed": F("linear", "how pixels enter", choices=("linear", "dictionary")),
    "model.dictionary_bits": F(8, "bits a channel of the colour dictionary", low=1, high=8),
    "model.frequency_steps": F(
        128, "dit: steps of the time's frequencies; 127 is what diffusers computes", choices=(127, 128)
    ),
    "model.drop_path": F(0.0, "stochastic depth of the last layer, linear from 0; the papers' grows with the model, this stays", low=0.0, high=0.99),
    "model.dropout": F(0.0, "dropout on tokens and residual branches", low=0.0, high=0.99),
    "model.layer_scale": F(0.0, "initial scale of residual branches; 0 = none", low=0.0),
    "model.norm_eps": F(1e-6, "epsilon of the layer norms", low=0.0),
    "model.dtype": F(
        "auto",
        "compute dtype; auto = bfloat16 on TPU and GPU, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    ),
    "model.attention": F(
        "auto", "attention implementation", choices=("auto", "xla", "blocked", "splash", "cudnn")
    ),
    "model.exchange": F(
        "auto",
        "how tokens travel over mesh.seq: heads for tokens (ulysses), or keys to all (gather)",
        choices=("auto", "ulysses", "gather"),
    ),
    "model.remat": F(
        "none",
        "what the backward pass recomputes: nothing, whole blocks, or all but dense layers'"
        " products; auto = dots, on a CPU none",
        choices=("none", "full", "dots", "auto"),
    ),
    # mae: masked autoencoding
    "mae.mask_ratio": F(0.75, "share of the patches that the encoder does not see"),
    "mae.normalise_target": F(False, "give each patch of the target mean 0 and variance 1"),
    "mae.decoder_width": F(
        128,
        "channels of a token in the decoder, whatever the encoder's; its MLP has 4 times as many",
        low=1,
        high=WIDEST,
    ),
    "mae.decoder_depth": F(4, "layers of the decoder", low=1, high=DEEPEST),
    "mae.decoder_heads": F(
        4, "attention heads of the decoder; must divide its width; 0 = of about 32 channels", low=0
    ),
    "mae.decoder_position": F(
        "learned", "the decoder's own positions", choices=("learned", "sincos2d", "none")
    ),
    # diffusion: what is learned
    "diffusion.family": F(
        "gaussian", "noise added by a schedule, or a straight flow from it", choices=("gaussian", "flow")
    ),
    "diffusion.schedule": F("linear", "gaussian: how noise grows", choices=("linear", "cosine")),
    "diffusion.timesteps": F(1000, "gaussian: steps of the schedule", low=2, high=100_000),
    "diffusion.predict": F(
        "epsilon", "what the network says; a flow knows v and x0", choices=("epsilon", "x0", "v")
    ),
    "diffusion.learn_sigma": F(True, "gaussian: learn the variance too, with the hybrid loss"),
    "diffusion.decoder": F(
        "tanh",
        "gaussian: the normal distribution of the last step's likelihood, by the tanh that public"
        " DiT and ADM have, or exact",
        choices=("tanh", "exact"),
        before="exact",
    ),
    "diffusion.time_mean": F(0.0, "flow: mean of the times' logits; 0 is noise, 1 data"),
    "diffusion.time_std": F(1.0, "flow: their standard deviation", low=0.0),
    "diffusion.min_gap": F(0.05, "flow: smallest 1 − time that x0 turns into v by", low=1e-6, high=1.0),
    "diffusion.conditional": F(True, "tell the network the class"),
    "diffusion.label_drop": F(
        0.1, "share of labels left out in training, for guidance", low=0.0, high=1.0
    ),
    # sample: how images are generated
    "sample.sampler": F(
        "ddpm", "; ".join(f"{family}: {', '.join(names)}" for family, names in SAMPLERS.items()),
        choices=tuple(name for names in SAMPLERS.values() for name in names),
    ),
    "sample.steps": F(250, "of the sampler", low=1, high=100_000),
    "sample.spacing": F(
        "linspace",
        "gaussian: keep timesteps evenly from the first to the last, or at an integer stride from"
        " the first on (leading; public DiT's ddim50)",
        choices=SPACINGS,
    ),
    "sample.variance": F(
        "large",
        "gaussian, ddpm: of a step where it is not learned, β as public DiT and ADM have it by"
        " default, or small: β̃, that of the true step",
        choices=("large", "small"),
        before="small",
    ),
    "sample.labels": F(
        "balanced",
        "of image i: class i mod classes, or a random one as public DiT's and ADM's evaluations"
        " draw them: a function of (seed, i)",
        choices=("balanced", "random"),
        before="balanced",
    ),
    "sample.eta": F(0.0, "ddim: share of ddpm's noise", low=0.0, high=1.0),
    "sample.guidance": F(1.0, "scale of classifier-free guidance; 1 = none", low=0.0),
    "sample.guidance_channels": F(
        0, "guide only the first so many channels, 3 in public DiT; 0 = all", low=0, words={0: "all"}
    ),
    "sample.guidance_interval": F(
        (0.0, 1.0), "guide only at these noise levels, 0 = data, 1 = noise", low=0.0, high=1.0
    ),
    "sample.clip": F(False, "keep each step's estimate of the image in [-1, 1]"),
    "sample.dtype": F(
        "model",
        "compute dtype of sampling: model.dtype's, or another; published figures of public weights"
        " were made in float32, and bfloat16 is some per cent off",
        choices=("model", "float32", "bfloat16"),
        before="model",
    ),
    "sample.seed": F(0, "image i is a function of (seed, i)", low=0, high=2**32 - 1),
    "sample.batch_size": F(0, "images at once, over all devices; 0 = as in evaluation", low=0),
    "sample.num": F(1000, "images that a generation evaluation makes", low=1),
    # autoencoder: the latents that diffusion may work on
    "autoencoder.channels": F(
        (128, 256, 512, 512), "of each level; the side halves between two", low=1, high=WIDEST
    ),
    "autoencoder.layers": F(2, "residual blocks a level", low=1, high=DEEPEST),
    "autoencoder.latent": F(4, "channels of a latent", low=1, high=WIDEST),
    "autoencoder.groups": F(32, "of the group norms; must divide all channels", low=1),
    "autoencoder.attends": F(True, "attention at the lowest resolution"),
    "autoencoder.kl_weight": F(
        1e-6,
        "of the latents' divergence from N(0, 1), against the absolute error, both summed over"
        " an image",
        low=0.0,
    ),
    "autoencoder.weights": F(
        "", "latents: the autoencoder they were made by; images are decoded with it", place=True
    ),
    # earlier answers to the question how much locality it takes
    "convnet.channels": F((32, 64), "of each stage", low=1, high=WIDEST),
    "convnet.layers": F((1, 1), "residual blocks of each stage, two convolutions each", low=1, high=DEEPEST),
    "convnet.kernel": F(3, "side of the filters in pixels, odd; 1 = no neighbourhood", low=1, high=999),
    "convnet.downsample": F(False, "halve the side between stages by averaging 2×2 places"),
    "perceiver.latents": F(32, "vectors that read the pixels by cross-attention", low=1, high=WIDEST),
    "perceiver.rounds": F(
        2,
        "times they do so, model.depth layers of self-attention after each; those after the"
        " first share their weights",
        low=1,
        high=DEEPEST,
    ),
    "autoregressive.levels": F(
        8, "of a channel; a pixel has one of levels ^ channels colours", low=2, high=256
    ),
    # depth: regression of every pixel's depth
    "depth.loss": F(
        "silog",
        "scale-invariant, of logarithms (Eigen et al. 2014), or the absolute or squared error in"
        " metres",
        choices=("silog", "l1", "l2"),
    ),
    "depth.silog_lambda": F(
        0.5, "how much of a common factor of an image's depths is forgiven; 1 = all", low=0.0, high=1.0
    ),
    "depth.nearest": F(1e-3, "depths up to this many metres count as not known", low=1e-6),
    "depth.farthest": F(10.0, "and those beyond; predictions are clipped to the range", low=1e-6, high=255.0),
    # data
    "data.name": F(
        "digits",
        "digits, scenes, folder, latents, the name of a TensorFlow Datasets set, or of a resized"
        " copy, SET@SIZE",
    ),
    "data.dir": F("", "where the set lies; empty = $TFDS_DATA_DIR or ~/tensorflow_datasets", place=True),
    "data.latents_of": F(
        "", "latents: the set of images they are of, for its size where their store is not here"
    ),
    "data.split": F("train", "training split, or folder of class folders"),
    "data.eval_split": F("test", "evaluation split, or folder of class folders"),
    "data.per_class": F(0, "train on so many examples of each class only; 0 = on all", low=0, words={0: "all"}),
    "data.per_class_seed": F(0, "which ones those are", low=0, high=2**32 - 1),
    "data.image_size": F(32, "side of the image the model sees, pixels", low=1, high=4096),
    "data.channels": F(3, "colour channels, 1 or 3; of latents as many as they have", low=1, high=4096),
    "data.num_classes": F(10, "classes; 1 where nobody reads labels", low=1, high=10**7),
    "data.mean": F(
        (0.5,), "mean subtracted from images in [0, 1], one value or one a channel", low=-1e3, high=1e3
    ),
    "data.std": F((0.5,), "standard deviation they are divided by, likewise", low=1e-6, high=1e3),
    "data.in_memory_gb": F(4.0, "sets up to this size (as uint8) are held in memory, GB", low=0.0),
    "data.workers": F(0, "processes that decode streamed images; 0 = threads only", low=0, high=1024),
    "data.corrupt": F("refuse", "an image that cannot be decoded", choices=("refuse", "skip")),
    "data.eval_crop": F(
        1.0,
        "share of the shorter side that the centre crop keeps where images are not cropped at"
        " random; published ImageNet evaluations keep 0.875",
        low=0.1,
        high=1.0,
    ),
    "data.halve": F(
        False,
        "where images are not cropped at random: halve those of twice the size and more by"
        " averaging before they are resized, as public DiT and ADM do; a resized copy is made"
        " without",
        before=False,
    ),
    "data.keyed_by": F(
        "index",
        "what an image's own draws in evaluation and its .permutation.per_image are functions of:"
        " its number in the data set, or its pixels, by which equal pictures draw alike",
        choices=("index", "pixels"),
        before="pixels",
    ),
    # permutation of pixels, after augmentation, before patches are cut
    "data.permutation.swaps": F(
        0, "pairs of pixels that trade places, no pixel twice; 0 = none", low=0
    ),
    "data.permutation.distance": F(
        0, "largest |Δrow| + |Δcolumn| of a pair, pixels; 0 = no limit", low=0, words={0: "any"}
    ),
    "data.permutation.seed": F(0, "which pairs those are", low=0, high=2**32 - 1),
    "data.permutation.per_image": F(
        False,
        "False: the same pairs in all images of both splits; True: other pairs in each, a"
        " function of the seed and of the image's number in its split, the same in every epoch",
    ),
    # augmentation, inside the jitted training step
    "data.augmentation.crop": F(
        "none",
        "random crop: of the image with black around it, of random area, or of the image resized to"
        " its shorter side and mirrored at its border (DeiT III)",
        choices=("none", "pad", "resized", "simple"),
    ),
    "data.augmentation.pad": F(4, "pixels around the image for crop=pad and simple", low=1, high=4096),
    "data.augmentation.scale": F(
        (0.2, 1.0), "range of a resized crop's area, share of the image", low=1e-6, high=1.0
    ),
    "data.augmentation.ratio": F(
        (0.75, 4 / 3), "range of a resized crop's width / height", low=1e-3, high=1e3
    ),
    "data.augmentation.interpolation": F(
        "bicubic", "of a resized crop, antialiased", choices=("bilinear", "bicubic")
    ),
    "data.augmentation.flip": F(0.0, "probability of a horizontal flip", low=0.0, high=1.0),
    "data.augmentation.three_augment": F(
        False, "one of grayscale, solarisation and Gaussian blur, evenly (DeiT III)"
    ),
    "data.augmentation.grayscale": F(0.0, "probability of losing all colour", low=0.0, high=1.0),
    "data.augmentation.grayscale_first": F(
        True, "before the jitter, as in MoCo v1; False: after it, as in MoCo v2"
    ),
    "data.augmentation.jitter": F(
        (0.0, 0.0, 0.0, 0.0), "strength of brightness, contrast, saturation and hue jitter", low=0.0,
        high=100.0,
    ),
    "data.augmentation.jitter_prob": F(
        1.0, "probability of that jitter; MoCo v2 has 0.8", low=0.0, high=1.0
    ),
    "data.augmentation.blur": F(
        0.0, "probability of a Gaussian blur of 0.1 to 2 pixels", low=0.0, high=1.0
    ),
    "data.augmentation.randaugment": F(
        0.0, "magnitude of RandAugment's operations, timm's increasing set; 0 = off", low=0.0, high=10.0
    ),
    "data.augmentation.randaugment_std": F(0.5, "standard deviation of that magnitude", low=0.0),
    "data.augmentation.randaugment_layers": F(
        2, "operations drawn an image, each applied with probability 0.5", low=1, high=100
    ),
    "data.augmentation.erasing": F(
        0.0, "probability that noise replaces a rectangle of the image", low=0.0, high=1.0
    ),
    "data.augmentation.mixup": F(0.0, "alpha of mixup's Beta distribution; 0 = off", low=0.0),
    "data.augmentation.cutmix": F(0.0, "alpha of cutmix's; with both on, one of them a batch", low=0.0),
    "data.augmentation.mixup_prob": F(
        1.0, "probability that a batch is mixed at all, by mixup or cutmix", low=0.0, high=1.0
    ),
    "data.augmentation.mixup_switch_prob": F(
        0.5, "with both on, probability of cutmix", low=0.0, high=1.0
    ),
    "data.augmentation.repeats": F(
        1,
        "times that an image comes in a row, augmented differently; an epoch is as many examples"
        " as ever, of as many fewer images",
        low=1,
        high=1000,
    ),
    # optim
    "optim.name": F("adamw", "optimiser", choices=("adamw", "sgd")),
    "optim.lr": F(1e-3, "peak learning rate, whatever the batch unless lr_batch says otherwise", low=0.0),
    "optim.lr_batch": F(
        0, "0 = lr is absolute; 256 = lr is a base rate, × batch_size / 256", low=0
    ),
    "optim.betas": F((0.9, 0.999), "AdamW's betas; sgd takes the first as momentum"),
    "optim.eps": F(1e-8, "AdamW's epsilon", low=0.0),
    "optim.weight_decay": F(0.0, "decoupled; none on norms, biases, [CLS], positions", low=0.0),
    "optim.layer_decay": F(1.0, "learning rate factor a layer, counted from the head", low=0.0, high=1.0),
    "optim.freeze": F((), "regular expressions of parameter paths that do not train", elements=str),
    "optim.clip": F(0.0, "largest global gradient norm; 0 = off", low=0.0),
    "optim.schedule": F("cosine", "after warm-up", choices=("cosine", "constant", "wsd")),
    "optim.warmup": F("0 steps", "linear warm-up from 0; only a share in % follows the length of training", length=True),
    "optim.decay": F("20%", "linear decay at the end of warm-up–stable–decay (wsd)", length=True),
    "optim.lr_end": F(0.0, "absolute learning rate at the end of cosine and wsd", low=0.0),
    "optim.ema": F(0.0, "decay of the parameters' moving average, evaluated if on; 0 = off", low=0.0, high=0.999999),
    # train
    "train.batch_size": F(1024, "examples a step, over all devices", low=1),
    "train.steps": F(None, "length in steps; one of steps, epochs, examples", kind=int, low=1, high=2**31 - 1),
    "train.epochs": F(None, "length in passes over the training set", kind=float, low=0.0),
    "train.examples": F(None, "length in training examples", kind=int, low=1, high=10**12),
    "train.accumulate": F(1, "parts that a batch is computed in, one after the other; its gradient stays the same", low=1),
    "train.label_smoothing": F(0.0, "share of the target spread over all classes", low=0.0, high=0.99),
    "train.seed": F(0, "seed of initial weights, data order and augmentation", low=0, high=2**32 - 1),
    "train.log_every": F(50, "steps between rows of metrics.jsonl", low=1),
    "train.deterministic": F(False, "same bits on a GPU too, slower"),
    "train.tensorboard": F(True, "also write TensorBoard event files"),
    "train.wandb": F("", "also log to this Weights & Biases project; empty = off"),
    # mesh
    "mesh.data": F(-1, "devices over examples; -1 = what is left", low=-1),
    "mesh.fsdp": F(1, "devices over examples and parameters", low=-1),
    "mesh.seq": F(1, "devices over tokens", low=-1),
    "mesh.model": F(1, "devices over heads and hidden units", low=-1),
    # eval, checkpoint, launch
    "eval.every": F("10%", "between evaluations; the last step is always evaluated", length=True),
    "eval.batch_size": F(0, "examples an evaluation step; 0 = train.batch_size", low=0),
    "eval.what": F(
        ("accuracy",), "evaluations of the task, probes, and locality, to run during training",
        choices=EVALUATIONS,
    ),
    "eval.pictures": F(8, "images in a picture grid; of generated ones so many a class", low=1, high=10_000),
    "eval.locality_images": F(
        256, "held-out images that attention and receptive field are measured on", low=1
    ),
    "eval.reference": F(
        "", "generation: statistics or images to compare with (.npz); empty = the training set", place=True,
        words={"": "training set"},
    ),
    "eval.features": F(
        "", "generation: weights of FID's Inception, or a run directory of a classifier", place=True
    ),
    "eval.resize": F(
        "tensorflow", "generation: how Inception's input is resized", choices=("tensorflow", "pytorch")
    ),
    "eval.neighbourhood": F(3, "generation: neighbours that make precision and recall's ball", low=1),
    "eval.views": F(1, "of each training image that the linear probe trains on: itself, then crops and flips", low=1),
    "eval.shots": F((5, 10, 100), "training images a class of the few-shot probe", low=1),
    "eval.neighbours": F(20, "that vote in the nearest-neighbour probe", low=1),
    "checkpoint.every": F("10%", "between checkpoints; the last step is always saved", length=True),
    "checkpoint.keep": F(2, "newest checkpoints that stay", low=1),
    "checkpoint.keep_best": F(1, "checkpoints that stay for being the best too, by what judges the task: accuracy, RMSE, ...", low=0),
    "launch.heartbeat_s": F(100, "seconds until a silent process counts as dead", low=10),
    "launch.retries": F(5, "crashes without a new checkpoint between them until a run is given up", low=0),
    "launch.hang_s": F(1800, "seconds without a step until a run counts as hung; 0 = never", low=0),
    "init_from": F("", "run directory or .safetensors file whose weights the run starts from", place=True),
    "init_task": F("", "the task that init_from must have been trained by; empty = any", choices=("", *TASKS)),
    "resume": F("", "run directory whose whole state a fresh run starts from", place=True),
}  # fmt: skip
