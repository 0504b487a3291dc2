"""The table of all checks. To add one: a function that yields Faults, and its row here.

Rows stand in the order in which a run tells the first: causes before what follows from them.
"""

from __future__ import annotations

from ssnet_mm.checks import images, lists, masks, splits
from ssnet_mm.checks.finding import Check

# of the text file that lists a data set's names
OF_LISTS = (
    Check(
        'folder-for-list',
        'error',
        'ann_file is a folder, and every image would be taken, whatever it holds',
        'name the text file in it',
        lists.folders_for_lists,
    ),
    Check('blank-line', 'error', 'empty line in the list', 'delete it', lists.blank_lines),
    Check(
        'byte-order-mark',
        'error',
        'the list begins with a byte order mark, which is taken as part of the first name',
        'save it as UTF-8 without BOM',
        lists.byte_order_marks,
    ),
    Check(
        'name-with-suffix',
        'error',
        'the list gives names with their suffix, which is added again',
        'list names without suffix',
        lists.names_with_suffix,
    ),
    Check(
        'repeated-in-training',
        'note',
        'names that stand in the list more than once are trained on more often',
        'delete the lines if that is not meant',
        lists.repeated_in_training,
    ),
    Check(
        'repeated-in-scoring',
        'error',
        'names that stand in the list more than once count as often in the scores',
        'delete the lines',
        lists.repeated_in_scoring,
    ),
    Check(
        'repeated-in-wrapper',
        'error',
        'images that data sets put together give more than once count as often in the scores',
        'list each image in one of them, and use no RepeatDataset',
        lists.repeated_in_wrapper,
    ),
)

# of an image and its mask
OF_SAMPLES = (
    Check(
        'missing-image',
        'error',
        'no such image',
        'put it there, or see to the list, data_prefix.img_path and img_suffix',
        images.missing_images,
    ),
    Check(
        'missing-mask',
        'error',
        'no such mask',
        'put it there, or see to the list, data_prefix.seg_map_path and seg_map_suffix',
        images.missing_masks,
    ),
    Check(
        'unreadable-image',
        'error',
        "image that can't be read",
        'fetch it again, or take it off the list',
        images.unreadable_images,
    ),
    Check(
        'unreadable-mask',
        'error',
        "mask that can't be read",
        'make it again, or take it off the list',
        images.unreadable_masks,
    ),
    Check(
        'colour-mask',
        'error',
        'mask that is a colour picture, where one class index a pixel is wanted',
        'convert it to indices (8-bit grey or palette PNG)',
        masks.colour_masks,
    ),
    Check(
        'lossy-mask',
        'error',
        'mask stored as JPEG, which changes values near edges',
        'make it again from its source, as PNG',
        masks.lossy_masks,
    ),
    Check(
        'wrapping-mask',
        'error',
        'mask whose numbers do not fit 8 bits, and are cut to them',
        'store class indices 0..{last} as an 8-bit PNG',
        masks.wrapping_masks,
    ),
    Check(
        'stretched-mask',
        'error',
        'grey mask of fewer than 8 bits a pixel, whose values are stretched when it is read',
        'store it with 8 bits a pixel, or with a palette',
        masks.stretched_masks,
    ),
    Check(
        'turned-apart',
        'error',
        'EXIF turns the image as it is read, and the mask fits the image as it is stored',
        "turn the image's pixels and remove its EXIF orientation, or make the mask for the turned "
        'image',
        images.turned_apart,
    ),
    Check(
        'sizes-differ',
        'error',
        'image and mask differ in size (width x height)',
        'give both the same size',
        images.sizes_differ,
    ),
    Check(
        'value-outside',
        'error',
        'mask with values that name none of the {num_classes} classes (0..{last}, {void} for void)',
        'put the masks right, or classes and num_classes (and reduce_zero_label if 0 is void)',
        masks.values_outside,
    ),
    Check(
        'void-mask',
        'note',
        'mask without a labelled pixel',
        'take it off the list: nothing is learned from it',
        masks.void_masks,
    ),
    Check(
        'deep-mask',
        'note',
        'mask of more than 8 bits a pixel; its values happen to fit',
        'store masks as 8-bit PNG',
        masks.deep_masks,
    ),
    Check(
        'turned-perhaps',
        'note',
        'EXIF turns the image as it is read, and never the mask',
        'see on the contact sheet of tools/check_data.py that they agree',
        images.turned_perhaps,
    ),
    Check(
        'deep-image',
        'note',
        'image of more than 8 bits a channel is read as 8',
        'scale it to 8 bits yourself, if that is too dark or too coarse',
        images.deep_images,
    ),
    Check(
        'transparent-image',
        'note',
        'transparency of the image is dropped, and shows the colours beneath',
        'paint it on a background yourself if those mean nothing',
        images.transparent_images,
    ),
    Check(
        'print-colours',
        'note',
        'CMYK image, which decoders turn into RGB each in its way',
        'convert it to RGB',
        images.print_colours,
    ),
    Check(
        'other-content',
        'note',
        'content of another kind than the suffix says',
        'rename it; it is read by its content',
        images.other_content,
    ),
)

# of the sums over a data set
OF_TOTALS = (
    Check(
        'dark-images',
        'error',
        'images of more than 8 bits are read as 8, and come out nearly black',
        'scale them to 0..255 yourself',
        splits.dark_images,
    ),
    Check(
        'drawn-with-255',
        'error',
        'all masks hold 0 and 255 only, and 255 is void: nothing but class 0 has a pixel',
        'write 1 for the object, instead of 255',
        splits.drawn_with_255,
    ),
    Check(
        'counted-from-one',
        'error',
        'the masks count classes from 1, and no pixel is 0',
        'subtract 1 from the masks, or set reduce_zero_label=True',
        splits.counted_from_one,
    ),
    Check(
        'zero-label-reduced',
        'error',
        'reduce_zero_label=True makes 0 void and lowers other values, but 0 seems to be a class',
        'set reduce_zero_label=False',
        splits.zero_label_reduced,
    ),
    Check(
        'nothing-labelled',
        'error',
        'no mask has a labelled pixel, all are {void}',
        'put the masks right, or reduce_zero_label and classes',
        splits.nothing_labelled,
    ),
    Check(
        'some-drawn-with-255',
        'note',
        'some masks hold 0 and 255 only, others 1 too; 255 is void',
        'write 1 for the object if 255 is meant so',
        splits.some_drawn_with_255,
    ),
    Check(
        'absent-class',
        'note',
        'classes without a pixel in any mask',
        'it is not learned, and its IoU is nan: see whether classes, masks or the list are wrong',
        splits.absent_classes,
    ),
    Check(
        'palettes-differ',
        'note',
        'palettes give a number different colours in different masks, and the number alone counts',
        'if the colours are right, make masks of class indices from them, as ssnet_mm prepare does',
        splits.palettes_differ,
    ),
    Check(
        'repeated-content',
        'note',
        'the same image under two names',
        'leave one off the list',
        splits.repeated_content,
    ),
)

# of all data sets of a config together
OF_CONFIGS = (
    Check(
        'seen-in-training',
        'error',
        'images that training shows too, so that scores do not tell about new ones',
        'list each image in one split',
        splits.seen_in_training,
    ),
    Check(
        'all-seen-in-training',
        'note',
        'all images are trained on: the scores do not tell about new ones',
        'take other images if that is not meant',
        splits.all_seen_in_training,
    ),
)

# of all folders of a config together
OF_FOLDERS = (
    Check(
        'unlisted-image',
        'note',
        'image with a mask that no data set of the config takes up',
        'add it to a list, or give it the suffix of the others',
        splits.unlisted_images,
    ),
    Check(
        'mask-alone',
        'note',
        'mask without an image',
        'put its image there, or see to img_suffix and seg_map_suffix',
        splits.masks_alone,
    ),
)

CHECKS = (*OF_LISTS, *OF_SAMPLES, *OF_TOTALS, *OF_CONFIGS, *OF_FOLDERS)
