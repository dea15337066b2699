"""What `read_coco` met: counts of what it read, left out, changed or could not tell."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymotion.data.images.files import FolderContent


@dataclass
class CocoReport:
    """Counts of what `read_coco` met. All files, entries and annotations are in the table or counted here.

    Attributes:
        rows, images, captions: rows of the table, distinct images and captions in it.
        no_entry: pictures on disk that no annotation file names (kept, without captions; they have no persons).
        same_number: of `no_entry`, those that carry the number of another picture; their ids are their names.
        no_image: entries whose picture is not on disk (kept without an address if they have captions).
        dropped_entries: of `no_image`, those that have no caption either; they are left out.
        other_case: of `no_image`, those whose picture is there with other capitals in its name.
        ambiguous_names: of `no_image`, those that could be several pictures.
        by_number: entries whose picture goes by the other of COCO's two names for it.
        shared_files: entries whose picture is also that of an entry before; all of one picture are one group.
        repeated_entries: entries that appear twice, identically.
        empty_captions: captions without a word, left out.
        stray_captions, stray_persons: annotations of images that the file has no entry for, left out.
        persons, bodies, faces: rows that are persons, and those of them with a body box and a face box.
        other_objects: annotations of other categories than person, left out.
        crowds, small_boxes, degenerate_boxes: person annotations left out, by reason.
        no_image_persons: person annotations left out with their entry (`dropped_entries`).
        turned_boxes: boxes that were turned or mirrored with their picture, as its EXIF block asks.
        clipped_boxes: boxes that reach more than a pixel beyond the picture, and were clipped to it.
        other_size_boxes: boxes of pictures that have another size than the annotated one; null.
        outside_boxes: boxes more than half of which lies beyond the picture; null.
        unchecked_boxes: boxes whose picture is not there or cannot be read; kept as annotated.
        files: the annotation files that were read.
        content: what is in the folder of the split, and which files were left out.
    """

    rows: int = 0
    images: int = 0
    captions: int = 0
    no_entry: int = 0
    same_number: int = 0
    no_image: int = 0
    dropped_entries: int = 0
    other_case: int = 0
    ambiguous_names: int = 0
    by_number: int = 0
    shared_files: int = 0
    repeated_entries: int = 0
    empty_captions: int = 0
    stray_captions: int = 0
    stray_persons: int = 0
    persons: int = 0
    bodies: int = 0
    faces: int = 0
    other_objects: int = 0
    crowds: int = 0
    small_boxes: int = 0
    degenerate_boxes: int = 0
    no_image_persons: int = 0
    turned_boxes: int = 0
    clipped_boxes: int = 0
    other_size_boxes: int = 0
    outside_boxes: int = 0
    unchecked_boxes: int = 0
    files: list[str] = field(default_factory=list)
    content: FolderContent = field(default_factory=lambda: FolderContent(""))

    def notes(self) -> list[str]:
        """One line for each thing that was left out, changed or cannot be told."""
        told = (
            (self.no_entry, "images on disk that no annotation names (kept without captions in a table of images)"),
            (self.same_number, "of them have another image's number and were matched by name"),
            (self.dropped_entries, "entries with neither an image nor a caption left out"),
            (self.other_case, "entries have a file_name that differs from a file's in capital letters only"),
            (self.ambiguous_names, "entries have a file_name that several files could be"),
            (self.by_number, "images go by the other of COCO's two names than in the annotations"),
            (self.shared_files, "entries name the picture of another entry; they are kept in one group"),
            (self.repeated_entries, "entries appear twice, identically"),
            (self.stray_captions, "captions of images that have no entry left out"),
            (self.stray_persons, "persons of images that have no entry left out"),
            (self.no_image_persons, "persons left out with their entries"),
            (self.other_objects, "annotations of other things than persons left out"),
            (self.turned_boxes, "boxes of pictures that EXIF turns or mirrors, annotated as stored; turned with them"),
            (self.clipped_boxes, "boxes reach beyond their picture; clipped"),
            (self.other_size_boxes, "boxes of pictures that have another size than annotated; null"),
            (self.outside_boxes, "boxes lie mostly beyond their picture; null"),
            (self.unchecked_boxes, "boxes not checked, as their picture is not there or cannot be read"),
        )
        return [f"{count:,} {what}" for count, what in told if count] + self.content.notes()
