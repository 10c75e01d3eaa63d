"""The names of layers, losses and metrics that a job may have.

They are here once more so that a job can be checked without loading NumPy and the
library; tests/test_config.py compares them with the library's.
"""

from __future__ import annotations

_LAYERS = """
    AUC BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy
    CategoricalCrossentropy ConcordanceCorrelation ConfusionMatrix CosineSimilarity
    F1Score FBetaScore FalseNegatives FalsePositives IoU LogCoshError MeanIoU
    OneHotIoU OneHotMeanIoU PearsonCorrelation Perplexity Precision
    PrecisionAtRecall R2Score Recall RecallAtPrecision RootMeanSquaredError
    SensitivityAtSpecificity SparseCategoricalAccuracy SparseCategoricalCrossentropy
    SparseTopKCategoricalAccuracy SpecificityAtSensitivity TopKCategoricalAccuracy
    TrueNegatives TruePositives auc binary_accuracy binary_io_u categorical_accuracy
    concordance_correlation confusion_matrix cosine_similarity f1_score
    false_negatives false_positives fbeta_score log_cosh_error pearson_correlation
    precision r2_score recall rmse root_mean_squared_error
    sparse_categorical_accuracy sparse_top_k_categorical_accuracy
    top_k_categorical_accuracy true_negatives true_positives
"""  # fastserve.layers
    """
    Activation Add AdditiveAttention Affine AlphaDropout Attention Average
    AveragePooling1D AveragePooling2D AvgPool1D AvgPool2D BatchNormalization
    Bidirectional CategoryEncoding CenterCrop Chain Concatenate Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Convolution1D Convolution1DTranspose
    Convolution2D Convolution2DTranspose Cropping1D Cropping2D Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Divide Dot Dropout ELU Embedding Flatten GRU
    GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAvgPool1D GlobalAvgPool2D GlobalMaxPool1D GlobalMaxPool2D
    GlobalMaxPooling1D GlobalMaxPooling2D GroupNormalization Identity Input
    InputLayer IntegerLookup Item LSTM Lambda LayerNormalization LeakyReLU Masking
    MaxPool1D MaxPool2D MaxPooling1D MaxPooling2D Maximum Minimum MultiHeadAttention
    Multiply Normalization PReLU Permute PositionEmbedding RMSNormalization
    RandomBrightness RandomContrast RandomCrop RandomFlip RandomRotation
    RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape Residual
    Resizing SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D SimpleRNN Softmax SpatialDropout1D SpatialDropout2D
    StringLookup Subtract SwiGLU TextVectorization TiedHead TimeDistributed
    TransformerBlock UnitNormalization UpSampling1D UpSampling2D ZeroPadding1D
    ZeroPadding2D
    """.split()
)
LOSSES = frozenset(  # fastserve.losses.NAMED
    """
    BCE BinaryCrossentropy BinaryFocalCrossentropy CTC CategoricalCrossentropy
    CategoricalFocalCrossentropy CategoricalHinge CosineSimilarity Dice Hinge Huber
    KLD KLDivergence LogCosh MAE MAPE MSE MSLE MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
    SparseCategoricalCrossentropy SquaredHinge Tversky bce binary_crossentropy
    binary_focal_crossentropy categorical_crossentropy
    categorical_focal_crossentropy categorical_hinge cosine_similarity ctc dice
    hinge huber huber_loss kl_divergence kld kullback_leibler_divergence log_cosh
    logcosh mae mape mean_absolute_error mean_absolute_percentage_error
    mean_squared_error mean_squared_logarithmic_error mse msle poisson
    sparse_categorical_crossentropy squared_hinge tversky
    """.split()
)
METRICS = frozenset(  # bare names: fastserve.metrics.KNOWN
    """
    AUC BCE BinaryAccuracy BinaryCrossentropy BinaryFocalCrossentropy BinaryIoU CTC
    CategoricalAccuracy CategoricalCrossentropy CategoricalFocalCrossentropy
    CategoricalHinge ConcordanceCorrelation ConfusionMatrix CosineSimilarity Dice
    F1Score FBetaScore FalseNegatives FalsePositives Hinge Huber KLD KLDivergence
    LogCosh LogCoshError MAE MAPE MSE MSLE MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError
    PearsonCorrelation Perplexity Poisson Precision R2Score Recall
    RootMeanSquaredError SparseCategoricalAccuracy SparseCategoricalCrossentropy
    SparseTopKCategoricalAccuracy SquaredHinge TopKCategoricalAccuracy TrueNegatives
    TruePositives Tversky acc accuracy auc bce binary_accuracy binary_crossentropy
    binary_focal_crossentropy binary_io_u categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_hinge
    concordance_correlation confusion_matrix cosine_similarity ctc dice f1_score
    false_negatives false_positives fbeta_score hinge huber huber_loss kl_divergence
    kld kullback_leibler_divergence log_cosh log_cosh_error logcosh mae mape
    mean_absolute_error mean_absolute_percentage_error mean_squared_error
    mean_squared_logarithmic_error mse msle pearson_correlation perplexity poisson
    precision r2_score recall rmse root_mean_squared_error
    sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_top_k_categorical_accuracy squared_hinge top_k_categorical_accuracy
    true_negatives true_positives tversky
    """.split()
)
METRICS_WITH_ARGUMENTS = frozenset(  # names with a mapping of arguments

LAYERS = frozenset(_LAYERS.split())
LOSSES = frozenset(_LOSSES.split())
METRICS = frozenset(_METRICS.split())
METRICS_WITH_ARGUMENTS = frozenset(_METRICS_WITH_ARGUMENTS.split())
