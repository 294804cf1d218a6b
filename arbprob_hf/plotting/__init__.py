"""Pictures of masks, attention, conditionals and curves; the only place that knows matplotlib."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

# for type checkers and editors; a command checks where a picture goes before torch is imported
if TYPE_CHECKING:
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

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            ".attention": ("plot_attention",),
            ".conditionals": ("plot_conditionals",),
            ".curves": ("draw_comparison", "draw_training_curves", "plot_curves"),
            ".figures": ("check_picture_path",),
            ".masks": ("draw_sheets", "plot_mask"),
        },
    )
