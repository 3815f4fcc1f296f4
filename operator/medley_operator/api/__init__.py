"""The API group medley.dev/v1alpha1: models, their CRDs, and their translation to and from the planner's values.

The pydantic models are the single source. `crd` makes CustomResourceDefinitions of them, `reference` the documentation,
`resolve` judges what one object alone cannot know, `translate` speaks to the planner.
"""

GROUP = "medley.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
