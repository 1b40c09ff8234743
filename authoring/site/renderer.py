"""MyST-NB's renderer of a notebook's outputs, with the alt text that a picture's metadata has."""

from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer


class AltRenderer(NbElementRenderer):
    """MyST-NB's renderer, which keeps width and height of an output's metadata, and the alt text too."""

    def render_image(self, data: MimeData) -> list[nodes.Element]:
        """A picture of a cell's output.

        Args:
            data: the picture and the metadata of its output.

        Returns:
            An image node, with alt text where the output's metadata has it.
        """
        images = super().render_image(data)
        if alt := data.output_metadata.get(data.mime_type, {}).get("alt"):
            for image in images:
                image["alt"] = alt
        return images
