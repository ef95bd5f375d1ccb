"""What the pages of methods and metrics say beside the docstrings: group, cost, when to use, name in the audit."""

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """A page's own words.

    Attributes:
        group: heading in the index.
        cost: passes through the network, for one example unless said.
        use: when to use it, and what it does not say.
        audit: its names in the audits; its own name by default.
    """

    group: str
    cost: str
    use: str
    audit: tuple[str, ...] = ()


ONE = "One forward pass, and one backward pass for each target."
LAYER = "One forward pass, and for each target one backward pass from the logit to the layer."
GRADIENTS, RULES, MAPS, PERTURBATION, ATTENTION, PAIRS, TRAINING = (
    "Gradients",
    "Rules on the traced program",
    "Activation maps",
    "Perturbation",
    "Attention",
    "Pairs",
    "Training images",
)
METHODS: Mapping[str, Entry] = {
    "gradient": Entry(
        GRADIENTS,
        ONE,
        "For what a small change of each entry does to the logit. It is a slope, not a share of the logit.",
    ),
    "saliency": Entry(
        GRADIENTS, ONE, "For where the logit is sensitive, where the sign does not matter. Noisy on deep networks."
    ),
    "input_x_gradient": Entry(
        GRADIENTS,
        ONE,
        "The first thing to try: on a ReLU network without biases it is the exact decomposition. On a network whose "
        "coefficients depend on the input it is not, see [why](../../how/input_x_gradient.md).",
    ),
    "integrated_gradients": Entry(
        GRADIENTS,
        "`steps` forward passes, and as many backward passes for each target.",
        "For a complete attribution of a differentiable network against a baseline that means nothing is there. Check "
        "the residual; raise `steps` where it is large. On ReLU networks it falls slowly.",
    ),
    "blur_integrated_gradients": Entry(
        GRADIENTS,
        "`steps` forward passes, and as many backward passes for each target.",
        "As integrated gradients, of images for which no color is neutral: the baseline is the blurred image.",
    ),
    "expected_gradients": Entry(
        GRADIENTS,
        "`samples` forward passes, and as many backward passes for each target.",
        "As integrated gradients, where one baseline would decide too much: baselines are drawn from the data.",
    ),
    "smooth_grad": Entry(
        GRADIENTS,
        "`samples` forward passes, and as many backward passes for each target.",
        "For a slope that does not depend on the last digit of each pixel.",
    ),
    "smooth_grad_squared": Entry(
        GRADIENTS,
        "`samples` forward passes, and as many backward passes for each target.",
        "For where slopes are large, whatever their sign, under noise.",
    ),
    "vargrad": Entry(
        GRADIENTS,
        "`samples` forward passes, and as many backward passes for each target.",
        "For where slopes change with noise: a measure of how little the slope can be believed there.",
    ),
    "noise_tunnel": Entry(
        GRADIENTS,
        "`samples` calls of the method within.",
        "For smoothing any other method over noisy copies of the input.",
    ),
    "guided_backpropagation": Entry(
        RULES,
        ONE,
        "For sharp pictures of patterns. It is nearly the same for every class, so not for telling classes apart.",
    ),
    "deconvolution": Entry(
        RULES, ONE, "For the patterns that a unit answers to; with the faults of guided backpropagation."
    ),
    "deep_lift": Entry(
        RULES,
        "Two forward passes, and one backward pass for each target.",
        "For a complete attribution at the price of two gradients, against a baseline.",
    ),
    "deep_lift_shap": Entry(
        RULES,
        "That of `deep_lift` for each baseline.",
        "As `deep_lift`, with baselines from the data: an approximation of Shapley values.",
    ),
    "lrp": Entry(
        RULES,
        ONE,
        "For relevance that is handed down layer by layer by a rule of your choice. With ε alone it is input × "
        "gradient of a ReLU network; composites trade exactness for less noise.",
        (
            "lrp_epsilon",
            "lrp_epsilon_plus",
            "lrp_epsilon_plus_flat",
            "lrp_epsilon_alpha2_beta1",
            "lrp_epsilon_gamma_box",
        ),
    ),
    "excitation_backprop": Entry(
        RULES, ONE, "For a positive map that sums to 1, of networks whose activations are not negative."
    ),
    "grad_cam": Entry(
        MAPS, LAYER, "For a coarse map of where the evidence for a class is, on any convolutional network."
    ),
    "grad_cam_plus_plus": Entry(MAPS, LAYER, "As Grad-CAM, where a class occurs several times in an image."),
    "hires_cam": Entry(
        MAPS,
        LAYER,
        "In place of Grad-CAM wherever the sum should be the logit: exact where an affine head reads the layer.",
    ),
    "layer_cam": Entry(MAPS, LAYER, "For activation maps of shallow layers, finer than those of the last."),
    "xgrad_cam": Entry(MAPS, LAYER, "As Grad-CAM, with channels weighted so that sums come near the logit."),
    "eigen_cam": Entry(
        MAPS,
        "One forward pass and a singular value decomposition of the maps.",
        "For what a layer sees at all. The same for every class.",
    ),
    "score_cam": Entry(
        MAPS,
        "One forward pass for each channel of the layer.",
        "For activation maps where gradients are not to be trusted or not to be had.",
    ),
    "ablation_cam": Entry(
        MAPS,
        "One pass from the layer to the logits for each of its channels.",
        "As Score-CAM: the weight of a channel is what the logit loses without it.",
    ),
    "guided_grad_cam": Entry(
        MAPS,
        "That of `grad_cam` and of `guided_backpropagation`.",
        "For a fine picture within the region that Grad-CAM finds.",
    ),
    "occlusion": Entry(
        PERTURBATION,
        "One forward pass for each position of the window.",
        "For a check that uses nothing but outputs. The size of the window decides what can be seen.",
    ),
    "feature_ablation": Entry(
        PERTURBATION,
        "One forward pass for each group.",
        "For inputs that fall into known groups, such as superpixels or columns.",
    ),
    "feature_permutation": Entry(
        PERTURBATION,
        "`samples` forward passes for each group.",
        "As feature ablation, where no baseline is natural: the values come from other examples of the batch.",
    ),
    "rise": Entry(
        PERTURBATION,
        "`masks` forward passes.",
        "For any function of images, without gradients. Maps have noise of order 1/√masks and an offset.",
    ),
    "lime": Entry(
        PERTURBATION,
        "`samples` forward passes and a regression on the groups.",
        "For a few weights of groups that a person can read. They depend on the kernel's width.",
    ),
    "kernel_shap": Entry(
        PERTURBATION, "`samples` forward passes and a regression.", "For Shapley values of some dozens of groups."
    ),
    "shapley_sampling": Entry(
        PERTURBATION,
        "`samples` forward passes for each group.",
        "For Shapley values of many groups, with an error that falls as 1/√samples.",
    ),
    "shapley_values": Entry(
        PERTURBATION,
        "2^d forward passes for d groups, d ≤ 16.",
        "For exact Shapley values, and for checking the estimates.",
    ),
    "meaningful_perturbation": Entry(
        PERTURBATION,
        "`steps` forward and backward passes for each target.",
        "For the smallest region that the prediction cannot do without.",
    ),
    "extremal_perturbation": Entry(
        PERTURBATION,
        "`steps` forward and backward passes for each target.",
        "For the best region of a given area, so that areas can be compared.",
    ),
    "attention_rollout": Entry(
        ATTENTION,
        "One forward pass and the products of its attention matrices.",
        "For where information could have come from in a transformer. The same for every class.",
    ),
    "gradient_rollout": Entry(ATTENTION, ONE, "For rollout of each class of a transformer."),
    "pairs": Entry(
        PAIRS,
        "One Hessian–vector product for each chosen position; times `steps` for integrated Hessians.",
        "For which two pixels speak together: exact for an order of a polynomial such as a TaylorNet.",
    ),
    "tracin": Entry(
        TRAINING,
        "A gradient of each training and test example at each checkpoint.",
        "For which training images moved a prediction along the path of training. Exact of gradient descent on a model "
        "that is linear in its weights; for exact shares of a trained network see `NPKRegressor`.",
    ),
    "influence_functions": Entry(
        TRAINING,
        "`steps` passes over the training set for each test example.",
        "For what leaving a training image out would change, near an optimum of a convex loss.",
    ),
}

FAITHFULNESS, ROBUSTNESS, LOCALIZATION, COMPLEXITY, RANDOMIZATION, AXIOMS, DETECTION, PARTS = (
    "Faithfulness",
    "Robustness",
    "Localization",
    "Complexity",
    "Randomization",
    "Axioms",
    "Detection",
    "Parts of the above",
)
CURVE = "One forward pass for each point of the curve."
EACH = "One forward pass for each group."
RERUN = "`samples` calls of the method."
MAP = "That of the map alone."
METRICS: Mapping[str, Entry] = {
    "pixel_flipping": Entry(
        FAITHFULNESS, CURVE, "For the whole curve, with every choice open: order, baseline, score."
    ),
    "deletion": Entry(FAITHFULNESS, CURVE, "For comparing with published deletion scores. Low is good."),
    "insertion": Entry(
        FAITHFULNESS,
        CURVE,
        "For comparing with published insertion scores. High is good. It favors maps that hang together.",
    ),
    "region_perturbation": Entry(FAITHFULNESS, CURVE, "For AOPC as published: regions, with noise in their place."),
    "selectivity": Entry(FAITHFULNESS, CURVE, "As deletion, of regions."),
    "irof": Entry(FAITHFULNESS, CURVE, "As deletion, of superpixels, relative to the score at the start."),
    "road": Entry(
        FAITHFULNESS,
        CURVE,
        "Where a fixed baseline would itself be evidence: what is removed is imputed from its neighbors.",
    ),
    "faithfulness_correlation": Entry(
        FAITHFULNESS,
        "`samples` forward passes.",
        "For whether sums of contributions over random subsets mean what they say.",
    ),
    "faithfulness_estimate": Entry(
        FAITHFULNESS, "`steps` forward passes.", "For whether single groups of pixels matter as much as the map says."
    ),
    "monotonicity": Entry(
        FAITHFULNESS, "`steps` forward passes.", "For whether putting pixels back ever lowers the score."
    ),
    "monotonicity_correlation": Entry(
        FAITHFULNESS,
        "`steps` × `samples` forward passes.",
        "For whether importance ranks as the network's answer to noise does.",
    ),
    "infidelity": Entry(
        FAITHFULNESS,
        "One forward pass for each square, or `samples`.",
        "The first metric to try: of those audited it ranks methods most nearly as the truth does.",
    ),
    "sufficiency": Entry(
        FAITHFULNESS, MAP, "For whether examples with like maps are predicted alike; needs many examples."
    ),
    "pixel_deletion": Entry(
        FAITHFULNESS,
        CURVE,
        "For the removal curve of the CoDA paper: pixels removed in encoded space, least important first.",
    ),
    "max_sensitivity": Entry(
        ROBUSTNESS, RERUN, "For the worst change of a map under small noise. A constant map is best, so not alone."
    ),
    "average_sensitivity": Entry(ROBUSTNESS, RERUN, "For the mean change of a map under small noise."),
    "local_lipschitz": Entry(ROBUSTNESS, RERUN, "For the change of a map per change of the input."),
    "relative_input_stability": Entry(ROBUSTNESS, RERUN, "For relative changes, where maps or inputs differ in size."),
    "relative_output_stability": Entry(
        ROBUSTNESS, RERUN, "For changes of a map that changes of the logits do not account for."
    ),
    "grid_pointing_game": Entry(
        LOCALIZATION,
        "One call of the method for each grid, on an image n × n times as large.",
        "For localization without masks: which image of a grid is the class's? Chance is 1/n².",
    ),
    "pointing_game": Entry(LOCALIZATION, MAP, "For a yes or no: is the largest entry on the object?"),
    "attribution_localization": Entry(LOCALIZATION, MAP, "For the positive share inside a mask, perhaps by its size."),
    "top_k_intersection": Entry(LOCALIZATION, MAP, "For how many of the k largest entries lie on the object."),
    "relevance_mass_accuracy": Entry(LOCALIZATION, MAP, "For the share of the mass on the object."),
    "relevance_rank_accuracy": Entry(LOCALIZATION, MAP, "As the mass, of ranks alone, with k the size of the object."),
    "localization_auc": Entry(
        LOCALIZATION, MAP, "For the map as a detector of the object's pixels, at all thresholds."
    ),
    "sparseness": Entry(
        COMPLEXITY, MAP, "For how few entries carry a map. It says nothing about whether they are the right ones."
    ),
    "complexity": Entry(COMPLEXITY, MAP, "For the entropy of a map, in nats."),
    "effective_complexity": Entry(COMPLEXITY, MAP, "For the number of entries that are not negligible."),
    "parameter_randomization": Entry(
        RANDOMIZATION,
        "One call of the method for each layer.",
        "For whether a map depends on the trained weights at all. The exact decomposition passes by construction.",
    ),
    "efficient_randomization": Entry(
        RANDOMIZATION, "Two calls of the method.", "As above, by the rise of the map's complexity alone."
    ),
    "random_logit": Entry(
        RANDOMIZATION, "Two calls of the method.", "For whether a map depends on the class that it is of."
    ),
    "completeness": Entry(
        AXIOMS, MAP, "For whether contributions sum to the logit. A complete map may still be a wrong one."
    ),
    "non_sensitivity": Entry(
        AXIOMS, EACH, "For pixels that the map names and the network does not read, and the other way round."
    ),
    "input_invariance": Entry(
        AXIOMS, "Two calls of the method.", "For whether a map moves with a constant that the network takes off again."
    ),
    "detect": Entry(DETECTION, "None: it takes scores.", "For precision and recall of scores above a threshold."),
    "best_threshold": Entry(
        DETECTION, "None: it takes scores.", "For choosing that threshold, on other examples than are tested."
    ),
    "sample_grids": Entry(PARTS, "None: it takes logits.", "For drawing the grids once, for several methods."),
    "tile_grid": Entry(PARTS, "None.", "For the grids as images."),
    "grid_pointing_scores": Entry(PARTS, MAP, "For scoring maps of grids that are there already."),
    "removal_counts": Entry(PARTS, "None.", "For the points at which a removal curve is read."),
    "removal_ranks": Entry(PARTS, MAP, "For the order in which pixels are removed."),
}
