"""The names of the classes that official weights answer with, which their files leave out; and their numbers in COCO."""

from __future__ import annotations

from collections.abc import Mapping

# In the order of the SceneParsing benchmark, the first name of each.
ADE20K = (
    "wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,earth,door,table,mountain,plant,"
    "curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,"
    "bathtub,railing,cushion,base,box,column,signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,"
    "grandstand,path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,coffee table,"
    "toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,swivel chair,boat,bar,arcade machine,hovel,"
    "bus,towel,light,truck,tower,chandelier,awning,streetlight,booth,television receiver,airplane,dirt track,apparel,pole,"
    "land,bannister,escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,plaything,"
    "swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,step,tank,trade name,microwave,pot,"
    "animal,bicycle,lake,dishwasher,screen,blanket,sculpture,hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,"
    "plate,monitor,bulletin board,shower,radiator,glass,clock,flag"
)


def known_names(dataset: str) -> tuple[str, ...] | None:
    """The names of the classes of "imagenet...", "voc", "ade20k" or "coco" in the weights' order; None for another data set.

    torchvision, which is always there, has all but those of ADE20K.
    """
    if dataset.startswith("imagenet"):
        from torchvision.models import MobileNet_V2_Weights

        return tuple(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    if dataset == "voc":
        from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

        names = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
        return ("background", *names[1:])
    if dataset == "ade20k":
        return tuple(ADE20K.split(","))
    return tuple(_coco_categories()) if dataset == "coco" else None


def coco_category_ids(names: Mapping[int, str]) -> dict[int, int] | None:
    """For a model with COCO's 80 classes the number of each in COCO's own numbering, which has gaps; None for another model."""
    if len(names) != 80:
        return None
    ids = _coco_categories()
    if any(str(name) not in ids for name in names.values()):
        return None
    return {int(index): ids[str(name)] for index, name in names.items()}


def _coco_categories() -> dict[str, int]:
    """Name -> number, in order."""
    from torchvision.models.detection import SSD300_VGG16_Weights

    categories = SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    return {name: number for number, name in enumerate(categories) if name not in ("__background__", "N/A")}
