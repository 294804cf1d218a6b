"""Pictures of masks, attention, conditionals and curves; the only place that knows matplotlib."""

from .attention import plot_attention
from .conditionals import plot_conditionals
from .curves import draw_comparison, draw_training_curves, plot_curves
from .figures import check_picture_path
from .masks import draw_sheets, plot_mask

__all__ = [
    "check_picture_path",
    "draw_comparison",
    "draw_sheets",
    "draw_training_curves",
    "plot_attention",
    "plot_conditionals",
    "plot_curves",
    "plot_mask",
]
