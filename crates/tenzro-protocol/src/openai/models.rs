//! `GET /v1/models`.

use serde::{Deserialize, Serialize};

use crate::inference::ModelCard;

/// The list of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelObject>,
}

/// One model, with what it runs added to OpenAI's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelObject {
    /// Always `model`.
    pub object: String,
    /// The rest.
    #[serde(flatten)]
    pub card: ModelCard,
}

impl ModelList {
    /// Of these models.
    pub fn new(cards: Vec<ModelCard>) -> Self {
        Self {
            object: "list".to_owned(),
            data: cards.into_iter().map(ModelObject::new).collect(),
        }
    }
}

impl ModelObject {
    /// Of one model.
    pub fn new(card: ModelCard) -> Self {
        Self {
            object: "model".to_owned(),
            card,
        }
    }
}
