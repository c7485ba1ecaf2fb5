"""Pure maths on arrays: marginals, RFM, clustering, profiles. Questions are sum queries; answers are noisy sums.

May import `privacy` and `study`. Programmes are generators that yield queries and are sent noisy sums back.
Must never happen here: input or output, Flower, randomness that protects anybody.
"""
